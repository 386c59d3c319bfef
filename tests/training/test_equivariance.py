"""Codes that shrink and turn as their images do: alike on both sides, drawn once a batch, and in training alone."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.checks.recipe import check_recipe
from pipeline.checks.tokenizer import check_tokenizer
from pipeline.components import build
from pipeline.draws import GivenDraws, StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.base import Loss
from pipeline.losses.multiscale_pixel import MultiscalePixel
from pipeline.losses.pixel import Pixel
from pipeline.nn.map_transform import UNCHANGED, MapTransform
from pipeline.recipes.equivariance import Equivariance
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.recipes.tokenizer_training import Phase
from pipeline.teachers.base import Tap
from pipeline.teachers.classifier import Classifier
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.training.equivariance import draw_transforms
from pipeline.training.reconstruction import Reconstruction

CONV = {"bottleneck": {"kind": "gaussian", "dim": 3}, "width": 8, "multipliers": [1, 2, 2], "blocks": 1, "groups": 4}
WEIGHTS = {"pixel": 1.0, "kl": 1e-3}


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


def draws(step: int = 0, rows: slice = slice(0, 4)) -> StepDraws:
    return StepDraws(0, step, rows, 4)


def stated(place: float, scale: float = 0.0, turn: float = 0.0) -> GivenDraws:
    given = {"place": place, "scale": scale, "turn": turn}
    return GivenDraws({f"equivariance.{name}": torch.tensor([value]) for name, value in given.items()}, draws())


def task(part: Equivariance | None, **others: Loss) -> Reconstruction:
    torch.manual_seed(1)
    nodes = {"pixel": {"kind": "pixel"}} | {name: {"kind": name} for name in others}
    weights = WEIGHTS | dict.fromkeys(others, 1.0)
    phase = Phase(Loop(1, {"tokenizer": 1e-3}), weights, nodes, equivariance=part)
    return Reconstruction(ConvAutoencoder(image_size=16, **CONV), phase, {"pixel": Pixel("l2")} | others)


def terms_of(part: Equivariance | None, given: GivenDraws | StepDraws) -> dict[str, Tensor]:
    (_, terms), *_ = task(part).turns(ImageBatch(images()), given, 0)
    return terms


def test_a_transform_shrinks_and_then_turns_and_the_default_does_nothing():
    maps = torch.randn(2, 3, 4, 8)
    assert UNCHANGED(maps) is maps
    assert torch.equal(MapTransform(turns=3)(MapTransform(turns=1)(maps)), maps)
    half = MapTransform(0.5)(maps)
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(maps, 2))  # bilinear at a half is the mean of four
    assert torch.equal(MapTransform(0.5, 1)(maps), half.rot90(1, dims=(-1, -2)))  # from columns to rows, as published
    images = torch.randn(2, 3, 8, 8)
    shrunk = torch.nn.functional.interpolate(images, (4, 4), mode="bicubic", antialias=True)
    assert torch.equal(MapTransform(0.5, 3, "bicubic").of_images(images), shrunk.rot90(3, dims=(-1, -2)))
    assert MapTransform().of_images(images) is images
    assert MapTransform(0.75)(torch.zeros(1, 1, 4, 16)).shape == (1, 1, 3, 12)


def test_at_scale_one_without_turns_training_is_the_plain_one_to_the_bit():
    nothing = Equivariance(codes=0.6, images=0.9, scales=(1.0,), turns=(0,), image_scales=(1.0,))
    for step in range(6):
        plain, same = terms_of(None, draws(step)), terms_of(nothing, draws(step))
        assert all(torch.equal(plain[name], same[name]) for name in WEIGHTS)


def test_shares_scales_and_turns_are_those_stated_and_the_draws_decide_all():
    part = Equivariance(codes=0.5, images=0.25, scales=(0.5, 1.0), turns=(1, 2, 3), image_scales=(0.25, 0.5))
    found = [draw_transforms(part, draws(step)) for step in range(600)]
    assert found == [draw_transforms(part, draws(step, slice(2, 3))) for step in range(600)], (
        "one a step, whichever rows"
    )
    codes = [after for before, after in found if before == UNCHANGED != after]
    shrunk = [before for before, after in found if after == UNCHANGED != before]
    assert len(codes) / 600 == pytest.approx(0.5, abs=0.06) and len(shrunk) / 600 == pytest.approx(0.125, abs=0.04)
    assert set(codes) == {MapTransform(scale, turns) for scale in (0.5, 1.0) for turns in (1, 2, 3)}
    assert draw_transforms(part, stated(0.49, 0.99, 0.5)) == (UNCHANGED, MapTransform(1.0, 2))
    assert set(shrunk) == {MapTransform(0.25), MapTransform(0.5)}, "images shrink and do not turn"
    assert draw_transforms(part, stated(0.51, 0.99, 0.99)) == (MapTransform(0.5), UNCHANGED)
    assert draw_transforms(part, stated(0.63)) == (UNCHANGED, UNCHANGED) == draw_transforms(None, stated(0.0))


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_losses_see_the_image_of_the_transformed_code_beside_the_image_transformed(scale, turn):
    """Both sides by hand: of a code's map, and of the image itself, which shrinks with antialiasing."""
    part = Equivariance(codes=1.0, scales=(scale,), turns=(turn,))
    tokenizer, given = task(None).players["tokenizer"], stated(0.0)
    code, _ = tokenizer.neck(tokenizer.features(images()), given)
    maps, aims = code.z.mT.unflatten(2, (4, 4)), images()
    if scale == 0.5:
        maps = torch.nn.functional.avg_pool2d(maps, 2)
        aims = torch.nn.functional.interpolate(aims, (8, 8), mode="bilinear", antialias=True)
    made = tokenizer.render(maps.rot90(turn, dims=(3, 2)).flatten(2).mT, grid=tuple(maps.shape[2:]))
    expected = (made - aims.rot90(turn, dims=(3, 2))).square().mean()
    torch.testing.assert_close(terms_of(part, given)["pixel"].detach(), expected.detach(), atol=1e-6, rtol=1e-5)


def test_or_the_image_is_transformed_before_it_is_encoded():
    part = Equivariance(codes=0.0, images=1.0, turns=(1,), image_scales=(0.5,))
    small = torch.nn.functional.interpolate(images(), (8, 8), mode="bilinear", antialias=True)
    plain = task(None)
    (_, expected), *_ = plain.turns(ImageBatch(small), draws(), 0)
    assert all(torch.allclose(value, expected[name]) for name, value in terms_of(part, draws()).items())


class Watching(MultiscalePixel):
    """Which images it is given, and whether they are of the code."""

    reads = ()

    def __init__(self, of_code: bool):
        super().__init__()
        self.of_code = of_code

    def forward(self, given: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        self.seen = given
        return {"multiscale_pixel": rebuilt.images.sum() * 0}


@pytest.mark.parametrize("of_code", [True, False])
def test_losses_of_codes_see_what_was_encoded_and_all_others_what_is_to_be_made(of_code):
    part, loss = Equivariance(codes=1.0, scales=(0.5,), turns=(2,)), Watching(of_code)
    training = task(part, multiscale_pixel=loss)
    next(iter(training.turns(ImageBatch(images()), draws(), 0)))
    assert torch.equal(loss.seen, images() if of_code else MapTransform(0.5, 2).of_images(images()))


def test_codes_of_smaller_images_are_aligned_on_a_smaller_grid():
    loss = build("losses", {"kind": "gram"}, extractor=Tap(Classifier(num_classes=3, width=8)), grid=[4, 4])
    assert loss.of_code and loss.grid_of(torch.zeros(1, 16, 3)) == (4, 4)
    assert loss.grid_of(torch.zeros(1, 4, 3)) == (2, 2) and loss.grid_of(torch.zeros(1, 9, 3)) == (3, 3)


def test_evaluation_cannot_be_asked_for_it():
    for name in ("encode", "decode", "render"):
        assert "transform" not in inspect.signature(getattr(ConvAutoencoder, name)).parameters


AT = "tokenizer.phases.main.equivariance"
HEAD = (
    "tokenizer.phases.main.losses.alignment={kind: feature_cosine, teacher: classifier, head: {blocks: 1, width: 64,"
    " heads: 4, layers: 1}}",
    "tokenizer.phases.main.weights.feature_cosine=1",
)
MISTAKES = {
    "a code without places": (
        "digits_titok_dit",
        [f"{AT}={{}}"],
        "this code has a grid of",
    ),
    "a fraction of a place": (
        "digits",
        [f"{AT}={{scales: [0.3]}}"],
        "0.3 shrinks the code from 4x4 to 1.2x1.2",
    ),
    "no place": ("digits", [f"{AT}={{scales: [0.1]}}"], "0.1 shrinks the code from 4x4 to 0.4x0.4"),
    "an odd side": (
        "digits_vfmvae",
        [f"{AT}={{scales: [0.75]}}"],
        "equivariance.scales: 0.75 does not pass the tokenizer",
    ),
    "an image of an odd side": (
        "digits_vfmvae",
        [f"{AT}={{scales: [1.0], images: 0.5, image_scales: [0.75]}}"],
        "equivariance.image_scales: 0.75 does not pass the tokenizer",
    ),
    "learned positions": (
        "digits_vitok",
        [f"{AT}={{scales: [0.5]}}", "tokenizer.model.position=rotary_and_learned"],
        "scales: 0.5 does not pass the tokenizer",
    ),
    "a head with positions": (
        "digits",
        [f"{AT}={{scales: [0.5]}}", *HEAD],
        "losses.alignment works on codes of one",
    ),
    "places left out": ("digits_rectok", [f"{AT}={{scales: [0.5], images: 0}}"], "or token_drop if set"),
    "a scale above one": ("digits", [f"{AT}={{scales: [2.0]}}"], r"equivariance.scales\[0\] is 2; give a fraction"),
    "no such turn": ("digits", [f"{AT}={{turns: [4]}}"], r"equivariance.turns\[0\] is 4; give a number from 0 to 3"),
    "a share above one": ("digits", [f"{AT}={{codes: 1.5}}"], "equivariance.codes is 1.5"),
    "post-training": (
        "digits_robust_flow",
        ["posttrain.phase.equivariance={scales: [0.5]}"],
        "posttrain.phase.equivariance changes codes that are encoded",
    ),
    "joint training": ("digits_repae", ["joint.phase.equivariance={scales: [0.5]}"], "codes of one size alone"),
}


@pytest.mark.parametrize("name, changes, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_what_cannot_be_equivariant_is_refused_in_one_line(name, changes, words):
    with pytest.raises(ValueError, match=words) as error:
        check_recipe(load(name, changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["digits", "digits_vfmvae", "digits_vitok", "digits_favae", "digits_rae"])
def test_maps_of_every_kind_may_halve(name):
    recipe = load(name)
    phase = next(iter(recipe.tokenizer.phases.values()))
    weights = {"pixel": 1.0} if name == "digits_rae" else WEIGHTS
    halved = Phase(
        replace(phase.loop, lr={"tokenizer": 1e-3}),
        weights,
        equivariance=Equivariance(scales=(0.5, 1.0), image_scales=(0.5,)),
    )
    recipe.tokenizer.phases = {"main": halved}
    check_tokenizer(recipe)
