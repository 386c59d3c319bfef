"""The tokenizer of clustered features: two generators, of which the second makes pixels of what the first is of."""

import pytest
import torch
from contracts import images_of, randomised
from torch import Tensor

from pipeline.code import Code
from pipeline.components import build
from pipeline.nn.prefixed_transformer import PrefixedTransformer, cross_entropy
from pipeline.tokenizers.clustered_features import ClusteredFeatures, uniforms_of

PIXELS = {
    "kind": "conv_autoencoder",
    **{"width": 8, "multipliers": [1, 1], "blocks": 1, "groups": 4, "patch_size": 2, "middle_attention": False},
    "bottleneck": {"kind": "vector_quantize", "dim": 4, "vocab": 12},
}
NODE = {
    "kind": "clustered_features",
    "frozen_encoder": {"kind": "stand_in"},
    "pixel_tokenizer": PIXELS,
    **{"vocab": 10, "width": 16, "depth": 2, "heads": 2},
}


def tokenizer(**changes: object) -> ClusteredFeatures:
    torch.manual_seed(0)
    return build("tokenizers", NODE | changes, image_size=16).eval()


def model(**changes: object) -> PrefixedTransformer:
    sizes = {"prefix": 3, "prefix_vocab": 5, "tokens": 4, "vocab": 6, "width": 16, "depth": 2, "heads": 2, "hidden": 24}
    return randomised(PrefixedTransformer(**sizes | changes)).eval()


@pytest.mark.parametrize("post_norm", [False, True])
def test_an_id_depends_on_the_prefix_and_on_the_ids_before_it(post_norm):
    net, prefix, ids = model(post_norm=post_norm), torch.tensor([[0, 1, 2]]), torch.tensor([[3, 4, 5]])
    logits = net(prefix, ids)
    for place in range(3):
        other = ids.clone()
        other[0, place] = 0
        changed = net(prefix, other)
        assert torch.equal(changed[:, : place + 1], logits[:, : place + 1])
        assert not torch.allclose(changed[:, place + 1 :], logits[:, place + 1 :], atol=1e-5)
    for place in range(3):
        other = prefix.clone()
        other[0, place] = 4
        assert ((net(other, ids) - logits).abs().amax(dim=-1) > 1e-5).all()


@pytest.mark.parametrize("post_norm", [False, True])
def test_one_by_one_is_one_pass_and_special_ids_are_never_chosen(post_norm):
    net, prefix = model(post_norm=post_norm, special_ids=4), torch.tensor([[0, 1, 2], [4, 4, 0]])
    with torch.no_grad():
        net.head.weight[6:] *= 100
    seen: list[Tensor] = []

    def choose(logits: Tensor, place: int) -> Tensor:
        seen.append(logits)
        return logits.argmax(dim=-1)

    ids = net.sample(prefix, choose)
    assert ids.shape == (2, 4) and ids.max() < 6
    torch.testing.assert_close(torch.stack(seen, dim=1), net(prefix, ids[:, :-1])[..., :6])


def test_smoothing_is_a_share_of_the_mean_over_all_ids():
    logits, ids = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1)), torch.tensor([[0, 1, 2], [3, 4, 6]])
    logs = logits.log_softmax(dim=-1)
    expected = -0.9 * logs.gather(2, ids[..., None]).mean() - 0.1 * logs.mean()
    torch.testing.assert_close(cross_entropy(logits, ids, 0.1), expected)


def test_an_image_is_what_the_pixel_tokenizer_makes_of_the_ids_that_are_written():
    own = tokenizer()
    with torch.no_grad():
        code = own.encode(images_of(16))
        written = own.translate(code.ids)
        assert torch.equal(own.decode(code), own.pixels.decode(Code(ids=written)))
        assert torch.equal(own.decode(Code(ids=code.ids)), own.decode(code))
        other = (code.ids + 1) % 10
        assert not torch.equal(own.translate(other), written)


def test_losses_of_pixels_do_not_reach_the_clusters_nor_the_translator():
    own, images = tokenizer().train(), images_of(16)
    rebuilt = own(images)
    inner = own.pixels(images)
    torch.testing.assert_close(rebuilt.images, inner.images)
    rebuilt.images.square().mean().backward()
    assert all(p.grad is None for p in own.translator.parameters())
    assert own(images, pixels=False).images is None


def test_numbers_that_choose_are_those_of_the_code():
    ids = torch.arange(12).view(3, 4) % 5
    numbers = uniforms_of(ids, 6)
    assert numbers.shape == (3, 6) and numbers.min() >= 0 and numbers.max() < 1
    assert torch.equal(uniforms_of(ids[1:2], 6), numbers[1:2]) and len(numbers.unique()) == 18


def test_weights_of_the_pixel_tokenizer_come_from_a_folder(tmp_path):
    trained = randomised(build("tokenizers", PIXELS, image_size=16))
    trained.save_pretrained(tmp_path / "pixels")
    own = tokenizer(pixel_start=str(tmp_path / "pixels"))
    assert all(torch.equal(value, own.pixels.state_dict()[name]) for name, value in trained.state_dict().items())
    assert own.config.pixel_start is None
    with pytest.raises(ValueError, match="is another tokenizer than pixel_tokenizer states"):
        tokenizer(pixel_start=str(tmp_path / "pixels"), pixel_tokenizer=PIXELS | {"width": 16})


def test_a_pixel_tokenizer_needs_ids():
    with pytest.raises(ValueError, match="give pixel_tokenizer a codebook") as refusal:
        tokenizer(pixel_tokenizer=PIXELS | {"bottleneck": {"kind": "gaussian", "dim": 4}})
    assert "\n" not in str(refusal.value)
