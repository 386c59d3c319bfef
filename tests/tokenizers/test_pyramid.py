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
from pipeline.nn.pyramid_decoder import ModulatedConv, PyramidDecoder, StyleMapping, Upsample
from pipeline.recipes.files import CONFIGS
from pipeline.recipes.schema import Loop, Phase, load
from pipeline.teachers.classifier import Classifier
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.pyramid import Pyramid
from pipeline.training.reconstruction import Reconstruction

SIZES = {
    "frozen_encoder": {"kind": "stand_in", "taps": [0, 1, -1]},
    "bottleneck": {"kind": "gaussian", "dim": 4},
    "side": 4,
    "widths": [16, 16, 8, 8],
    "spatial": [8, 8, 8],
    "tap_width": 8,
    "code_width": 16,
    "attention": 2,
    "depth": 1,
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
        ({}, [2, 4, 8]),
        ({"widths": [16, 8, 8], "side": 8, "frozen_encoder": {"kind": "stand_in", "taps": [0, 1]}}, [4, 8]),
        ({"spatial": [8], "attention": 0, "bottleneck": {"kind": "identity", "dim": 5}}, [2, 4, 8]),
    ],
)
def test_there_is_an_image_of_every_scale(changes, scales):
    tokenizer, images = make(**changes), pictures()
    arguments = Arguments.from_config(tokenizer)
    side = changes.get("side", 4)
    assert Pyramid.geometry(arguments) == tokenizer.spec == LatentSpec((side, side), tokenizer.neck.dim)
    rebuilt, code = tokenizer(images), tokenizer.encode(images)
    assert rebuilt.images.shape == images.shape
    assert [tuple(made.shape) for made in rebuilt.features["scales"]] == [(3, 3, scale, scale) for scale in scales]
    assert set(rebuilt.features) == set(tokenizer.can.features)
    torch.testing.assert_close(tokenizer.decode(code), rebuilt.images)
    torch.testing.assert_close(tokenizer.encode(images[1:2]).z, code.z[1:2], atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_sum_over_scales_of_the_error_to_smaller_images():
    images = pictures()
    exact = [F.avg_pool2d(images, 8), F.avg_pool2d(images, 4)]
    loss = MultiscalePixel()
    assert loss(images, TokenizerOutput(None, Code(), {}, {"scales": exact}))["multiscale_pixel"].item() < 1e-6
    wrong = [exact[0] + 0.5, exact[1] - 0.25]
    found = loss(images, TokenizerOutput(None, Code(), {}, {"scales": wrong}))["multiscale_pixel"]
    torch.testing.assert_close(found, torch.tensor(0.75), atol=1e-5, rtol=0)
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
    scales = layer.scales(style)
    weight = layer.weight[:, :, 0, 0] * scales[1]
    expected = torch.einsum("oi,ihw->ohw", weight / (weight.square().sum(1, keepdim=True) + 1e-8).sqrt(), maps[1])
    torch.testing.assert_close(made[1], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_style_reaches_all_levels_and_the_map_the_first_ones_alone():
    torch.manual_seed(0)
    decoder = PyramidDecoder(16, [16, 8, 8], [8], attention=0, depth=1)
    for level in decoder.levels:
        for block in level.blocks:
            block.scale.fill_(1.0)
    z = torch.randn(1, 16, 4, 4)
    mixed = z.flatten(2)[..., torch.randperm(16)].unflatten(2, (4, 4))  # another map of the same mean
    torch.testing.assert_close(decoder.mapping(z), decoder.mapping(mixed), atol=1e-5, rtol=1e-4)
    style, other = decoder.mapping(z), decoder.mapping(z + 1)
    for level in decoder.levels:
        h = torch.randn(1, level.enter.in_channels, 4, 4)
        assert not torch.allclose(level(h, style), level(h, other), atol=1e-4)
    assert [level.enter.in_channels for level in decoder.levels] == [8, 8, 8]
    assert [made.shape[2] for made in decoder(z)] == [2, 4, 8]


def test_the_mapping_learns_at_a_hundredth_of_the_pace():
    mapping = StyleMapping(8, rate=0.01)
    maps = torch.randn(2, 8, 3, 3)
    assert 0.1 < mapping(maps).std() < 2
    before = mapping.rate * mapping.weights[0].detach().clone()
    mapping(maps).square().sum().backward()
    torch.optim.Adam(mapping.parameters(), lr=1e-2).step()
    moved = (mapping.rate * mapping.weights[0] - before).abs().max()
    torch.testing.assert_close(moved.item(), 1e-4, atol=1e-6, rtol=1e-2)


@torch.no_grad()
def test_upsampling_doubles_and_keeps_constants():
    up = Upsample(8, 4)
    torch.testing.assert_close(up.kernel.sum(), torch.tensor(1.0))
    up.pointwise.weight.zero_()
    up.pointwise.bias.copy_(torch.arange(4.0).repeat_interleave(4))
    made = up(torch.randn(1, 8, 3, 3))
    torch.testing.assert_close(made, torch.arange(4.0)[None, :, None, None].expand(1, 4, 6, 6))


@torch.no_grad()
def test_an_attention_projection_is_its_skip_where_its_branches_are_silent():
    layer, maps = AttentionProjection(6, 4), torch.randn(2, 6, 3, 5)
    for branch in (layer.attention.proj, layer.down):
        branch.weight.zero_(), branch.bias.zero_()
    torch.testing.assert_close(layer(maps), layer.skip(maps.movedim(1, -1)).movedim(-1, 1))
    moved = randomised(AttentionProjection(6, 4), 1)
    change = moved(maps + F.one_hot(torch.tensor(0), 5)) - moved(maps)
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
        ({"side": 3}, "side is 3; the first level has half of it, so name an even number from 4 on"),
        ({"side": 8, "widths": [8, 8, 8]}, "a tap has 4 positions per side, which do not fold to 8"),
        ({"widths": [8, 8, 8]}, "3 widths lead from 2 to 8 pixels per side, not to 16"),
        ({"spatial": []}, "spatial has 0 entries"),
        ({"spatial": [8, 8, 8, 8], "code_width": 8}, "code_width 8 does not divide by 16"),
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
    assert tokenizer.joint.skip.in_features == 768
    assert sum(p.numel() for p in tokenizer.encoder.parameters()) / 1e6 == pytest.approx(316.74, abs=0.01)
