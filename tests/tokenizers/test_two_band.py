"""The autoencoder of two bands: its views, one branch's training apart from the other's, and what is refused."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from support.tiny_pipeline import make_recipe, randomised
from torch import Tensor

from pipeline.checks.tokenizer import check_tokenizer
from pipeline.code import LatentSpec
from pipeline.components import Arguments, build
from pipeline.critics.patch import Patch
from pipeline.draws import GivenDraws, StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.pixel import Pixel
from pipeline.losses.wavelet import Wavelet
from pipeline.nn.haar import haar
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.building import count_parameters
from pipeline.recipes.files import CONFIGS, read
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.runs.workspace import Workspace
from pipeline.tokenizers.two_band import TwoBand, resize_bicubic
from pipeline.training.reconstruction import Reconstruction
from stages import train_tokenizer

CODES = {"kind": "gaussian", "dim": 6}
SIZES = {"width": 8, "multipliers": [1, 2, 2], "blocks": 1, "groups": 4, "z_channels": 4}
BRANCHES = {"low": "high", "high": "low"}


def bands(**changes: Any) -> TwoBand:
    return randomised(TwoBand(**({"image_size": 16, "bottleneck": CODES} | SIZES | changes)), 1)


def pictures(count: int = 3, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size) * 2 - 1


def draws(count: int = 3) -> StepDraws:
    return StepDraws(0, 0, slice(0, count), count)


def phase(train: str, **more: Any) -> Phase:
    return Phase(Loop(1, {"tokenizer": 1e-3}), {"pixel": 1.0, "kl": 0.1} | more.pop("weights", {}), train=train, **more)


def turn(task: Reconstruction, images: Tensor) -> dict[str, Tensor]:
    """The terms of the tokenizer's turn, after its backward."""
    _, terms = next(iter(task.turns(ImageBatch(images), draws(len(images)), 0)))
    sum(terms.values()).backward()
    return terms


def moved(tokenizer: TwoBand) -> set[str]:
    return {name for name, p in tokenizer.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bottleneck": {"kind": "identity", "dim": 5}, "high_dim": 1},
        {"patch_size": 2, "multipliers": [1, 2], "high_multipliers": [3], "high_width": 4, "attention": [1]},
        {"attention": [0, 2], "middle_attention": False, "z_channels": None},
    ],
)
def test_a_code_of_both_bands_on_one_grid(changes):
    tokenizer, images = bands(**changes), pictures()
    arguments = Arguments.from_config(tokenizer)
    code, rebuilt = tokenizer.encode(images), tokenizer(images)
    assert TwoBand.geometry(arguments) == tokenizer.spec == LatentSpec((4, 4), tokenizer.neck.dim)
    assert code.z.shape == (3, *tokenizer.spec.shape) and rebuilt.images.shape == images.shape
    torch.testing.assert_close(tokenizer.decode(code), rebuilt.images)
    assert set(rebuilt.terms) == set(TwoBand.terms(arguments))
    assert tokenizer(pictures(1, 24)).images.shape == (1, 3, 24, 24), "other sizes, as the convolutions have it"


@torch.no_grad()
def test_views_are_the_halved_coefficients_and_merge_into_the_image():
    tokenizer, images = bands(), pictures()
    low, high = (tokenizer.view(images, branch) for branch in tokenizer.can.branches)
    for branch, view in (("low", low), ("high", high)):
        assert tuple(view.shape[1:]) == tokenizer.can.branches[branch]
    coefficients = haar(images) / 2
    torch.testing.assert_close(low, resize_bicubic(torch.nn.functional.avg_pool2d(images, 2), images.shape[2:]))
    torch.testing.assert_close(high[:, 4], coefficients[:, 2, 1])  # green, second of its three bands
    merged = tokenizer.merge_bands(low, high)
    torch.testing.assert_close(haar(merged)[:, 1:], haar(images)[:, 1:], atol=1e-5, rtol=1e-4)
    flat = torch.rand(3, 3, 1, 1).expand(-1, -1, 16, 16)
    torch.testing.assert_close(tokenizer.merge_bands(tokenizer.view(flat, "low"), tokenizer.view(flat, "high")), flat)
    for part in ("all", "decoder"):
        assert tokenizer.can.compared_shape(part, (3, 16, 16)) == (3, 16, 16)


@torch.no_grad()
def test_each_half_of_the_code_and_each_band_belong_to_one_branch():
    tokenizer, images = bands(), pictures()
    z, made = tokenizer.encode(images).z, tokenizer(images).images
    for branch, mine in (("low", slice(0, 3)), ("high", slice(3, 6))):
        other = slice(3, 6) if branch == "low" else slice(0, 3)
        changed = bands()
        for parameter in getattr(changed, branch).encoder.parameters():
            parameter.mul_(1.1)
        found = changed.encode(images).z
        assert torch.equal(found[..., other], z[..., other]) and not torch.allclose(found[..., mine], z[..., mine])
        changed = bands()
        changed.branch_last_layer(branch).mul_(1.5)
        apart = (haar(changed(images).images) - haar(made)).abs().amax(dim=(0, 2, 3, 4)) > 1e-5
        assert apart.tolist() == ([True, False, False, False] if branch == "low" else [False, True, True, True])


@torch.no_grad()
@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_alone_is_that_branch_of_the_whole(branch):
    tokenizer, images = bands(), pictures()
    noise = GivenDraws({"posterior": torch.randn(3, 16, 6)})
    alone = tokenizer(tokenizer.view(images, branch), draws=noise, branch=branch)
    whole = tokenizer(images, draws=noise)
    mine = slice(0, 3) if branch == "low" else slice(3, 6)
    torch.testing.assert_close(alone.code.z[..., mine], whole.code.z[..., mine])
    assert (alone.code.z[..., 3:] if branch == "low" else alone.code.z[..., :3]).abs().max() == 0
    bands_of = haar(whole.images) / 2
    if branch == "low":
        torch.testing.assert_close(
            resize_bicubic(alone.images, torch.Size((8, 8))), bands_of[:, 0], atol=1e-5, rtol=1e-4
        )
    else:
        torch.testing.assert_close(
            alone.images.unflatten(1, (3, 3)).transpose(1, 2), bands_of[:, 1:], atol=1e-5, rtol=1e-4
        )
    kl = {name: tokenizer(tokenizer.view(images, name), branch=name).terms["kl"] for name in BRANCHES}
    torch.testing.assert_close(kl["low"] + kl["high"], whole.terms["kl"])


@pytest.mark.parametrize("branch, other", BRANCHES.items())
def test_no_loss_of_a_branch_reaches_the_other(branch, other):
    tokenizer, images, compared = bands().train(), pictures(), []
    pixel = Pixel()
    pixel.register_forward_hook(lambda _, inputs, output: compared.append((inputs[0], inputs[1].images)))
    channels, *sides = tokenizer.can.branches[branch]
    critic = Patch(8, 1, "none", channels)
    adversary = Adversary(critic={"kind": "patch", "width": 8, "layers": 1, "norm": "none"})
    task = Reconstruction(
        tokenizer, phase(branch, adversary=adversary, weights={"adversarial": 0.5}), {"pixel": pixel}, critic
    )
    turn(task, images)
    assert moved(tokenizer) == {f"{branch}.{name}" for name, _ in getattr(tokenizer, branch).named_parameters()}
    assert all(parameter.grad is None for parameter in getattr(tokenizer, other).parameters())
    assert task.metrics["adaptive_weight"] > 0
    (given, made), *_ = compared
    torch.testing.assert_close(given, tokenizer.view(images, branch))
    assert made.shape == given.shape == (3, channels, *sides)


@pytest.mark.parametrize("branch, other", BRANCHES.items())
def test_a_term_of_one_band_of_images_has_no_gradient_at_the_other_branch(branch, other):
    """Joint training by `wavelet` routes gradients as well, but for rounding."""
    tokenizer = bands().train()
    weights = {"wavelet_low": 0.0, "wavelet_high": 0.0, "kl": 0.0} | {f"wavelet_{branch}": 1.0}
    of = Phase(Loop(1, {"tokenizer": 1e-3}), weights, losses={"wavelet": {"kind": "wavelet"}})
    turn(Reconstruction(tokenizer, of, {"wavelet": Wavelet()}), pictures())
    sizes = {name: max(p.grad.abs().max() for p in getattr(tokenizer, name).parameters()) for name in BRANCHES}
    assert sizes[branch] > 0 and sizes[other] < 1e-5 * sizes[branch]


def test_the_adversarial_term_may_grow_from_its_start_on():
    contest = Adversary({"kind": "patch"}, start=3, warmup=4)
    assert [contest.weight_factor(step) for step in range(9)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [Adversary({"kind": "patch"}, start=1).weight_factor(step) for step in range(3)] == [0, 1, 1]
    found, images = {}, torch.full((3, 3, 16, 16), 0.5)
    for warmup in (0, 4):
        critic = randomised(Patch(8, 1, "none"), 2)
        adversary = Adversary({"kind": "patch", "width": 8, "layers": 1, "norm": "none"}, adaptive=False, warmup=warmup)
        of = phase("all", adversary=adversary, weights={"adversarial": 0.5})
        found[warmup] = turn(Reconstruction(bands(), of, {"pixel": Pixel()}, critic), images)["adversarial"]
    torch.testing.assert_close(4 * found[4], found[0])


def test_the_fragment_builds_at_published_size():
    node = read(CONFIGS / "tokenizers/favae_f16d32.yaml")["tokenizer"]["model"]
    with torch.device("meta"):
        built = build("tokenizers", node, image_size=256)
    assert built.spec == LatentSpec((16, 16), 32) and round(count_parameters(built) / 1e6) == 93


@pytest.mark.parametrize("part", ["all", "encoder", "decoder"])
def test_other_phases_compare_images_and_move_both(part):
    tokenizer = bands().train()
    turn(Reconstruction(tokenizer, phase(part), {"pixel": Pixel("l2")}), pictures())
    trained = {id(p) for p in tokenizer.trainable(part)}
    assert moved(tokenizer) == {name for name, p in tokenizer.named_parameters() if id(p) in trained}
    both = [id(p) for name in ("encoder", "decoder") for p in tokenizer.trainable(name)]
    assert sorted(both) == sorted(id(p) for p in tokenizer.parameters())
    halves = [id(p) for name in BRANCHES for p in tokenizer.trainable(name)]
    assert sorted(halves) == sorted(both)


def recipe_of(**phases: dict[str, Any]):
    loop = {"steps": 2, "batch": 4, "lr": {"tokenizer": 1e-2}, "ema": 0.0}
    stated = {"weights": {"pixel": 1.0, "kl": 1e-4}, "loop": loop}
    made = {name: stated | changes | {"train": name} for name, changes in phases.items()}
    return make_recipe(tokenizer={"model": {"kind": "two_band", "bottleneck": CODES} | SIZES, "phases": made})


def test_the_stage_trains_one_branch_after_the_other(tmp_path):
    made = {}
    for name, phases in (("one", {"low": {}}), ("both", {"low": {}, "high": {}})):
        recipe = recipe_of(**phases)
        check_tokenizer(recipe)
        (tmp_path / name).mkdir()
        train_tokenizer.run(recipe, Workspace(tmp_path, Accelerator(cpu=True)), tmp_path / name)
        made[name] = TwoBand.from_pretrained(tmp_path / name).state_dict()
    for name, value in made["one"].items():
        assert torch.equal(made["both"][name], value) == (not name.startswith("high.")), name


def test_a_new_tokenizer_rebuilds_better_after_a_few_steps():
    torch.manual_seed(0)
    tokenizer, images, errors = TwoBand(16, {"kind": "identity", "dim": 8}, **SIZES), pictures(), []
    of = Phase(Loop(1, {"tokenizer": 1e-3}), {"pixel": 1.0})
    task = Reconstruction(tokenizer, of, {"pixel": Pixel("l2")})
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 5e-3)
    for _ in range(15):
        optimizer.zero_grad()
        errors.append(turn(task, images)["pixel"].item())
        optimizer.step()
    assert errors[-1] < 0.8 * errors[0]


@torch.no_grad()
def test_a_saved_folder_gives_the_same_tokenizer(tmp_path):
    tokenizer, images = bands(high_dim=2), pictures()
    tokenizer.mean.fill_(0.3)
    tokenizer.save_pretrained(tmp_path)
    again = TwoBand.from_pretrained(tmp_path)
    assert torch.equal(again(images).images, tokenizer(images).images)
    assert torch.equal(again.encode(images).z, tokenizer.encode(images).z)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"image_size": 18}, "18 pixels do not divide by 4"),
        ({"multipliers": [1], "patch_size": 2}, "multipliers needs two levels or more"),
        ({"high_multipliers": [1, 2, 2]}, "has 3 levels; at half the size it needs one less than multipliers, 2"),
        ({"attention": [3]}, "attention names level 3; the levels are 0 to 2"),
        ({"bottleneck": {"kind": "finite_scalar", "levels": [5, 5]}}, "finite_scalar gives one id for both bands"),
        ({"bottleneck": {"kind": "gaussian", "dim": 1}}, "of 1 channels 0 are the high band's"),
        ({"high_dim": 6}, "of 6 channels 6 are the high band's; each band needs one or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_without_building(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        TwoBand.geometry(Arguments.complete(TwoBand, {"image_size": 16, "bottleneck": CODES} | SIZES | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"losses": {"perceptual": {"kind": "perceptual"}}},
            "of 3 channels, and train=high makes 9; use pixel",
        ),
        (
            {"adversary": {"critic": {"kind": "patch", "layers": 1, "channels": 9}}},
            "critic.channels is determined by an earlier stage",
        ),
        (
            {"adversary": {"critic": {"kind": "patch"}}},
            "needs images of 24 pixels per side or more",
        ),
    ],
)
def test_what_a_band_cannot_be_trained_by_is_refused(changes, words):
    recipe = recipe_of(high=changes)
    recipe.tokenizer.phases["high"].loop.lr["critic"] = 1e-3
    with pytest.raises(ValueError, match=words) as caught:
        check_tokenizer(recipe)
    assert "\n" not in str(caught.value)
