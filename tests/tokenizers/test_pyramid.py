"""VFM-VAE's tokenizer: an image of every scale, one style for all levels, a frozen encoder, and the loss of scales."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from support.fresh_process import answers_of_saved
from support.tiny_pipeline import randomised
from torch import Tensor

from pipeline.checks.recipe import check_recipe
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments, build
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.multiscale_pixel import MultiscalePixel
from pipeline.losses.pixel import Pixel
from pipeline.nn.attention_projection import AttentionProjection
from pipeline.nn.pyramid_decoder import (
    FixedNoise,
    ModulatedConv,
    NullKeyAttention,
    PyramidDecoder,
    PyramidShape,
    StyleMapping,
    Upsample,
)
from pipeline.recipes.files import CONFIGS
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.recipes.tokenizer_training import Phase
from pipeline.teachers.classifier import Classifier
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.pyramid import Pyramid
from pipeline.training.reconstruction import Reconstruction

SIZES = {
    "frozen_encoder": {"kind": "stand_in", "taps": [0, 1, -1]},
    "bottleneck": {"kind": "gaussian", "dim": 4},
    "side": 4,
    "widths": [16, 8, 8],
    "spatial": [8, 8, 8],
    "tap_widths": [8],
    "code_width": 16,
    "attention": [2, 1],
    "depths": [1],
    "noise": True,
}


def make(**changes: Any) -> Pyramid:
    torch.manual_seed(0)
    tokenizer = Pyramid(16, **(SIZES | changes))
    tokenizer.load_stand_in(Classifier(3))
    return tokenizer.eval()


def pictures(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize(
    "changes, scales",
    [
        ({}, [4, 8]),
        (
            {"widths": [16, 8], "spatial": [8, 8], "side": 8, "frozen_encoder": {"kind": "stand_in", "taps": [0, 1]}},
            [8],
        ),
        ({"spatial": [8], "attention": [], "bottleneck": {"kind": "identity", "dim": 5}}, [4, 8]),
        ({"widths": [8, 8], "spatial": [8], "style": 12, "projection_layers": [2, 3]}, [8]),
        ({"blur": False, "activation": "silu", "tap_widths": [4, 6], "noise": False}, [4, 8]),
    ],
)
def test_there_is_an_image_of_every_scale(changes, scales):
    tokenizer, images = make(**changes), pictures()
    arguments = Arguments.from_config(tokenizer)
    side = changes.get("side", 4)
    first = 2 * pictures().shape[-1] // 2 ** len(tokenizer.config.widths)
    assert len(tokenizer.decoder.levels) == len(scales) + 1 and min(scales) == first
    assert Pyramid.geometry(arguments) == tokenizer.spec == LatentSpec((side, side), tokenizer.neck.dim)
    rebuilt, code = tokenizer(images), tokenizer.encode(images)
    assert rebuilt.images.shape == images.shape
    assert [tuple(made.shape) for made in rebuilt.features["scales"]] == [(3, 3, scale, scale) for scale in scales]
    assert set(rebuilt.features) == set(tokenizer.can.features)
    torch.testing.assert_close(tokenizer.decode(code), rebuilt.images)
    torch.testing.assert_close(tokenizer.encode(images[1:2]).z, code.z[1:2], atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_weighted_sum_over_scales_of_the_error_to_smaller_images():
    images = pictures()
    exact = [F.interpolate(images, side, mode="bilinear", antialias=True) for side in ((2, 2), (4, 4))]
    loss = MultiscalePixel()
    assert loss(images, TokenizerOutput(None, Code(), {}, {"scales": exact}))["multiscale_pixel"].item() < 1e-6
    wrong = [exact[0] + 0.5, exact[1] - 0.25]
    found = loss(images, TokenizerOutput(None, Code(), {}, {"scales": wrong}))["multiscale_pixel"]
    torch.testing.assert_close(found, torch.tensor(0.75), atol=1e-5, rtol=0)
    for weights, expected in (([2.0, 3.0], 2.0), ([2.0], 0.5), ([0.0, 1.0], 0.5)):  # from the largest
        found = MultiscalePixel(weights)(images, TokenizerOutput(None, Code(), {}, {"scales": wrong}))
        torch.testing.assert_close(found["multiscale_pixel"], torch.tensor(expected), atol=1e-5, rtol=0)
    recipe = load("digits", ["tokenizer.phases.main.losses.scales={kind: multiscale_pixel}"])
    with pytest.raises(ValueError, match="losses.scales: .* reads scales, which this tokenizer does not"):
        check_recipe(recipe)


def test_training_moves_every_parameter_but_the_frozen_ones():
    tokenizer = make().train()
    before = {name: value.clone() for name, value in tokenizer.encoder.state_dict().items()}
    weights = {"pixel": 1.0, "multiscale_pixel": 0.1, "kl": 1e-3}
    nodes = {"pixel": {"kind": "pixel"}, "scales": {"kind": "multiscale_pixel"}}
    losses = {"pixel": Pixel(), "scales": MultiscalePixel()}
    task = Reconstruction(tokenizer, Phase(Loop(1, {"tokenizer": 1e-3}), weights, nodes), losses)
    draws = StepDraws(0, 0, slice(0, 3), 3)
    ((_, terms),) = task.turns(ImageBatch(pictures()), draws, 0)
    sum(terms.values()).backward()
    for name, parameter in tokenizer.named_parameters():
        moved = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert moved != name.startswith("encoder."), name
    assert not any(module.training for module in tokenizer.encoder.modules())
    torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad]).step()
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.encoder.state_dict().items())
    held = [p for part in ("encoder", "decoder") for p in tokenizer.trainable(part)]
    assert {id(p) for p in held} == {id(p) for p in tokenizer.trainable("all")}
    assert any(p is tokenizer.last_layer for p in tokenizer.trainable("decoder"))


@torch.no_grad()
def test_demodulated_outputs_have_unit_variance_whatever_the_style():
    layer = randomised(ModulatedConv(64, 5, 16), 1)
    style, maps = 3 * torch.randn(2, 16), torch.randn(2, 64, 40, 40)
    made = layer(maps, style) - layer.bias[:, None, None]
    torch.testing.assert_close(made.var(dim=(2, 3)), torch.ones(2, 5), atol=0.15, rtol=0)
    m1, m2, m3 = (style @ one.T / 4 + bias for one, bias in zip(*(p.chunk(3) for p in layer.scales.parameters())))
    scales = m1 * m2 + m3
    weight = layer.weight[:, :, 0, 0] * scales[1]
    expected = torch.einsum("oi,ihw->ohw", weight / (weight.square().sum(1, keepdim=True) + 1e-8).sqrt(), maps[1])
    torch.testing.assert_close(made[1], expected, atol=1e-4, rtol=1e-4)


def decoder_of(**changes: Any) -> PyramidDecoder:
    torch.manual_seed(0)
    shape = {"widths": [16, 8, 8], "spatial": [8], "depths": [1], "attention": [], "style": 16}
    decoder = PyramidDecoder(16, 4, (4, 4), PyramidShape(**shape | changes))
    for level in decoder.levels:
        for block in level.blocks:
            block.scale.data.fill_(1.0)
    return decoder


@torch.no_grad()
def test_the_style_reaches_all_levels_and_the_map_the_first_ones_alone():
    decoder = decoder_of()
    z = torch.randn(1, 16, 4, 4)
    mixed = z.flatten(2)[..., torch.randperm(16)].unflatten(2, (4, 4))  # another map of the same mean
    torch.testing.assert_close(decoder.mapping(z), decoder.mapping(mixed), atol=1e-5, rtol=1e-4)
    style, other = decoder.mapping(z), decoder.mapping(z + torch.randn(1, 16, 1, 1))
    for level in decoder.levels:
        h, total = (
            torch.randn(1, layer.depthwise.in_channels, 4, 4) for layer in (level.enter, level.carry or level.enter)
        )
        assert not torch.allclose(level(h, total, style)[0], level(h, total, other)[0], atol=1e-4)
    assert [level.enter.depthwise.in_channels for level in decoder.levels] == [8, 16, 8]
    assert [made.shape[2] for made in decoder(z)] == [4, 8, 16]


@torch.no_grad()
def test_an_image_is_of_the_sum_of_levels_and_the_next_level_reads_features_alone():
    decoder = decoder_of(noise=True)
    first, second = decoder.levels[:2]
    style, read = torch.randn(1, 16), torch.randn(1, 8, 1, 1)
    h, total = first(read, None, style)
    assert h is total
    after, above = second(h, total, style)
    torch.testing.assert_close(above, second.carry(total) + after)
    assert torch.equal(second(h, total + 1, style)[0], after), "features do not depend on the sum"


@torch.no_grad()
def test_fixed_noise_is_one_map_for_all_images_and_off_at_first():
    layer, maps = FixedNoise((8, 8)), torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(maps), maps)
    layer.strength.fill_(0.5)
    change = layer(maps) - maps
    torch.testing.assert_close(change, 0.5 * F.avg_pool2d(layer.noise[None, None], 2).expand_as(maps))


@torch.no_grad()
def test_attention_has_one_key_and_value_besides_the_positions():
    layer = NullKeyAttention(16)
    tokens = torch.zeros(1, 5, 16)  # queries and keys of zero: equal weights, of which the learned value has one
    value = layer.null[1].flatten() / 6
    torch.testing.assert_close(layer(tokens), layer.to_out(value).expand(1, 5, -1))


def test_the_mapping_learns_at_a_hundredth_of_the_pace():
    mapping = StyleMapping(8, 8)
    maps = torch.randn(2, 8, 3, 3)
    assert 0.1 < mapping(maps).std() < 4
    before = mapping.hidden.gain * mapping.hidden.weight.detach().clone()
    mapping(maps).square().sum().backward()
    torch.optim.Adam(mapping.parameters(), lr=1e-2).step()
    moved = (mapping.hidden.gain * mapping.hidden.weight - before).abs().max()
    torch.testing.assert_close(moved.item(), 1e-4 * 8**-0.5, atol=1e-6, rtol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("taps", [(1, 2, 1), (1, 4, 6, 4, 1), None])
@pytest.mark.parametrize("norm_last", [False, True])
def test_upsampling_doubles_and_keeps_constants(taps, norm_last):
    up, maps = Upsample(8, 4, taps, norm_last), torch.randn(2, 8, 3, 3)
    up.norm.weight.zero_(), up.norm.bias.fill_(1.0)
    if norm_last:
        assert torch.allclose(up(maps), torch.ones(2, 4, 6, 6))
        return
    up.depthwise.weight.zero_()
    up.depthwise.weight[:, :, 1, 1] = 1.0
    up.pointwise.weight.copy_(torch.arange(4.0).repeat_interleave(4)[:, None, None, None].expand(16, 8, 1, 1) / 8)
    torch.testing.assert_close(up(maps), torch.arange(4.0)[None, :, None, None].expand(2, 4, 6, 6))
    if taps is not None:
        torch.testing.assert_close(up.kernel.sum(), torch.tensor(1.0))


@torch.no_grad()
@pytest.mark.parametrize("inputs, outputs, heads", [(6, 4, 1), (12, 4, 3), (4, 12, 3), (6, 6, 1), (10, 3, 2)])
def test_an_attention_projection_is_its_skip_where_its_branches_are_silent(inputs, outputs, heads):
    layer, maps = AttentionProjection(inputs, outputs), torch.randn(2, inputs, 3, 5)
    (block,) = layer.blocks
    assert block.attention.heads == heads
    for branch in (block.attention.proj, block.feed_forward.down):
        branch.weight.zero_(), branch.bias.zero_()
    expected = block.skip(F.layer_norm(maps.movedim(1, -1), [inputs])).movedim(-1, 1)
    torch.testing.assert_close(layer(maps), expected)
    moved = randomised(AttentionProjection(inputs, outputs, layers=2), 1)
    change = moved(maps + F.one_hot(torch.tensor(0), 5) * torch.randn(inputs, 1, 1)) - moved(maps)
    assert (change.abs().amax(dim=1) > 1e-6).all(), "every place attends to all others"


@torch.no_grad()
def test_a_saved_folder_is_whole_in_a_fresh_process(tmp_path):
    tokenizer, images = make(), pictures()
    answers = answers_of_saved(tmp_path, {"pyramid": (tokenizer.forward, images)})
    assert torch.equal(answers["pyramid"].images, tokenizer(images).images)
    again = Pyramid.from_pretrained(tmp_path / "pyramid")
    assert not again.can.needs_stand_in and again.config.frozen_encoder["source"] == "classifier"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"side": 8, "widths": [8, 8, 8]}, "a tap has 4 positions per side, which do not fold to 8"),
        ({"widths": [8] * 4}, "4 widths need images of 32 pixels per side or more, a multiple of 8, not of 16"),
        ({"spatial": [8] * 5}, "spatial has 5 entries; name at most one per level, of which there are 3"),
        ({"frozen_encoder": {"kind": "stand_in", "taps": [3]}}, r"taps are \[3\]"),
    ],
)
def test_mistakes_are_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        Pyramid.geometry(Arguments.complete(Pyramid, {"image_size": 16} | SIZES | changes))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("pyramid: ")


def test_the_published_size_is_built_on_meta():
    model = yaml.safe_load((CONFIGS / "tokenizers" / "vfmvae_siglip2l.yaml").read_text())["tokenizer"]["model"]
    with torch.device("meta"):
        tokenizer = build("tokenizers", model, image_size=256)
    assert tokenizer.spec == LatentSpec((16, 16), 32) and tokenizer.folds == [2, 2, 2]
    assert tokenizer.joint.blocks[0].skip.in_features == 768
    assert sum(p.numel() for p in tokenizer.encoder.parameters()) / 1e6 == pytest.approx(316.74, abs=0.01)
