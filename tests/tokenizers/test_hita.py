"""Hita: whose tokens see whose, what a holistic token carries to the image, the shift, and what is refused."""

import pytest
import torch
from torch import Tensor

from pipeline.code import Code
from pipeline.draws import StepDraws
from pipeline.losses.feature_reconstruction import FeatureReconstruction
from pipeline.nn.holistic import FoundationShape, HolisticDecoder
from pipeline.nn.token_mixer import MixerShape
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.hita import Hita
from pipeline.vision.frozen_encoder import VisionTransformer

CODES = {"kind": "vector_quantize", "dim": 6, "vocab": 12}
BOTTLENECK = {"kind": "two_segments", "first": CODES, "second": CODES | {"dim": 4}, "first_tokens": 3}
SIZES = {"width": 24, "depth": 2, "heads": 2, "hidden": 16, "conv_width": 8, "multipliers": [1, 1], "groups": 4}
SIZES |= {"blocks": 1, "attention": [], "shift": 2, "rebuild_features": True}


def hita(**changes) -> Hita:
    torch.manual_seed(0)
    return Hita(8, {"kind": "stand_in"}, **({"bottleneck": BOTTLENECK} | SIZES | changes)).eval()


def pictures(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_the_image_is_of_both_segments_and_the_rebuilt_features_of_the_holistic_one_alone():
    """Another image's holistic tokens change the whole image, and the features become those of that image."""
    tokenizer = hita()
    ids = torch.randint(12, (2, 19), generator=torch.Generator().manual_seed(1))
    swapped = torch.cat([ids.flip(0)[:, :3], ids[:, 3:]], dim=1)
    own, other = (tokenizer.entered(tokenizer.neck.lookup(each)) for each in (ids, swapped))
    with torch.no_grad():
        features = tokenizer.reader.rebuild(own[0]), tokenizer.reader.rebuild(other[0])
        maps, other_maps = tokenizer.reader(*own), tokenizer.reader(*other)
        images, other_images = (tokenizer.decode(Code(ids=each)) for each in (ids, swapped))
    assert torch.equal(features[1], features[0].flip(0)) and not torch.allclose(*features, atol=1e-3)
    assert ((maps - other_maps).abs().amax(dim=-1) > 1e-4).all()  # every place of the map sees them
    assert not torch.allclose(images, other_images, atol=1e-4)


def test_the_decoder_is_causal_and_is_read_early():
    shape = MixerShape(width=8, depth=2, heads=2, hidden=8)
    torch.manual_seed(0)
    reader = HolisticDecoder(3, (2, 2), 2, shape, FoundationShape(5, (1, 3)))
    holistic, patches = torch.randn(1, 3, 8), torch.randn(1, 4, 8)
    with torch.no_grad():
        before = reader(holistic, patches)
        for place in range(4):
            changed = patches.clone()
            changed[:, place] = torch.randn(8)
            moved = (reader(holistic, changed) - before).abs().amax(dim=-1)[0] > 1e-6
            assert moved.tolist() == [index >= place + 2 for index in range(4)]
        assert reader.rebuild(holistic).shape == (1, 3, 5)


def test_the_encoder_puts_holistic_tokens_first_and_reads_the_frozen_features():
    tokenizer, images = hita(), pictures()
    with torch.no_grad():
        given = tokenizer.encoder.tokens(images)
        rows = tokenizer.read_features(images, given)
        assert torch.equal(rows, tokenizer.features(images)) and not rows[:, 3:, 4:].any()
        other = tokenizer.read_features(images, torch.randn_like(given))
        assert ((other - rows).abs().amax(dim=-1) > 1e-5).all()
        map_tokens = tokenizer.convolution(images).flatten(2).mT
        order = tokenizer.holistic.order
        order.register_forward_pre_hook(
            lambda module, inputs: (inputs[0].index_fill(1, torch.tensor(18), 0.0), *inputs[1:])
        )
        blind = tokenizer.holistic(map_tokens, given)
        order._forward_pre_hooks.clear()
        whole = tokenizer.holistic(map_tokens, given)
    torch.testing.assert_close(blind[:, :18], whole[:, :18])
    assert not torch.allclose(blind[:, 18], whole[:, 18], atol=1e-4)


def test_the_loss_of_rebuilt_features_trains_the_code_and_not_the_frozen_model():
    tokenizer = hita().train()
    rebuilt = tokenizer(pictures(), draws=StepDraws(0, 0, slice(0, 2), 2))
    term = FeatureReconstruction()(pictures(), rebuilt)["feature_reconstruction"]
    term.backward()
    assert 0 < term < 2 and tokenizer.holistic.carriers.grad.abs().sum() > 0
    assert tokenizer.entries[1].weight.grad is None and all(p.grad is None for p in tokenizer.encoder.parameters())
    same = {"foundation": torch.ones(1, 4, 3), "rebuilt_foundation": 5 * torch.ones(1, 4, 3)}
    exact = FeatureReconstruction()(pictures(), TokenizerOutput(None, rebuilt.code, {}, same))
    assert exact["feature_reconstruction"] == pytest.approx(0, abs=1e-6)


def test_dropout_is_of_its_draws_alone():
    tokenizer = hita(dropout=0.5).train()
    draws = [StepDraws(0, step, slice(0, 2), 2) for step in (0, 0, 1)]
    images = [tokenizer(pictures(), draws=each).images for each in draws]
    assert torch.equal(images[0], images[1]) and not torch.allclose(images[0], images[2])
    assert torch.equal(tokenizer.eval()(pictures(), draws=draws[0]).images, tokenizer(pictures()).images)


def test_a_mask_leaves_holistic_tokens_as_they_are():
    region = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    region[:, :, 2:4, 4:6] = True
    within = hita().tokens_within(region)[0]
    assert within.nonzero().flatten().tolist() == [3 + 4 + 2]


def test_a_class_token_comes_before_those_of_patches():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 2, "image_size": 8}
    model = {"model_type": "dinov2_with_registers", **sizes}
    encoder = VisionTransformer(8, "random", model, image_patch=4, norm="own")
    pixels = encoder.pixels(pictures())
    states = encoder.outputs(pixels).last_hidden_state
    assert pixels.shape == (2, 3, 4, 4) and states.shape[1] == 1 + 4 + 4
    torch.testing.assert_close(encoder.tokens(pictures()), torch.cat([states[:, :1], states[:, 5:]], dim=1))
    torch.testing.assert_close(encoder(pictures())[-1].flatten(2).mT, states[:, 5:])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bottleneck": CODES}, "kind=two_segments"),
        ({"shift": 4}, "shift is 4, of 3 holistic tokens"),
        ({"heads": 5}, "multiple of 5"),
        ({"attention": [2]}, "level 2"),
        ({"decoder_multipliers": [1]}, "give 2"),
        ({"frozen_encoder": {"kind": "stand_in", "taps": [0, -1]}}, "2 taps"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Hita(**({"image_size": 8, "frozen_encoder": {"kind": "stand_in"}, "bottleneck": BOTTLENECK} | SIZES | changes))


def test_a_part_of_a_code_is_no_code():
    with pytest.raises(ValueError, match="a code of 5 tokens"):
        hita().decode(Code(ids=torch.zeros(1, 5, dtype=torch.int64)))
