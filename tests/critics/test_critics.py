"""Critics and their part in a training: what they see, what is trained of them, and what is remembered."""

import copy
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import transformers as t
from accelerate import Accelerator
from support.two_processes import as_two
from support.vision_folders import IMAGE
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.adversarial.hinge import Hinge
from pipeline.adversarial.least_squares import LeastSquares
from pipeline.checks.recipe import check_recipe
from pipeline.components import Arguments, build
from pipeline.critics.base import Critic
from pipeline.critics.blurred import Blurred, HalvingBlur
from pipeline.critics.frozen_features import FrozenFeatures, VirtualBatchNorm
from pipeline.critics.multiscale_patch import MultiscalePatch
from pipeline.critics.patch import Patch
from pipeline.draws import GivenDraws, StepDraws
from pipeline.frozen.networks import FrozenNetworks, check_extractor
from pipeline.images.reading import ImageBatch, Images
from pipeline.losses.pixel import Pixel
from pipeline.nn.augmentation import DRAWS, augment, blur, crop_batch
from pipeline.nn.critic_logits import LeCam, feature_matching
from pipeline.nn.spectral import SpectralConv1d
from pipeline.recipes.adversary import Adversary, Augmentation
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.recipes.tokenizer_training import Phase
from pipeline.recipes.weights import Weights
from pipeline.teachers.classifier import Classifier
from pipeline.teachers.vision_model import VisionModel
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.training.ema import Average
from pipeline.training.loop import TrainingRun, train
from pipeline.training.phase_parts import build_critic
from pipeline.training.reconstruction import Reconstruction

RATES = {"tokenizer": 1e-3, "critic": 1e-2}
CONV = {"bottleneck": {"kind": "gaussian", "dim": 3}, "width": 8, "multipliers": [1, 2], "blocks": 1}
EVERYTHING = {"augmentation": Augmentation(0.7), "lecam": 0.1, "loss": "hinge", "adaptive": True}


def images(count: int = 4, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1


def draws(count: int = 4, step: int = 0) -> StepDraws:
    return StepDraws(0, step, slice(0, count), count)


def teacher() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Classifier(num_classes=3, width=8, dim=4).requires_grad_(False).eval()


def frozen(norm: str = "group", **arguments) -> FrozenFeatures:
    torch.manual_seed(4)
    return FrozenFeatures(list(teacher().widths), "classifier", norm=norm, **arguments).judge_by(teacher())


def task_of(critic: Critic, weights: dict[str, float] | None = None, **adversary) -> Reconstruction:
    torch.manual_seed(1)
    tokenizer = ConvAutoencoder(image_size=16, **CONV)
    weights = {"pixel": 1.0, "kl": 1e-3, "adversarial": 0.5} | (weights or {})
    losses = {"pixel": {"kind": "pixel"}} if "pixel" in weights else {}
    phase = Phase(Loop(1, RATES), weights, losses, adversary=Adversary({"kind": "patch"}, **adversary))
    return Reconstruction(tokenizer, phase, {"pixel": Pixel("l2")} if losses else {}, critic)


def run(task: Reconstruction, step: int = 0) -> dict[str, dict[str, Tensor]]:
    found = {}
    for name, terms in task.turns(ImageBatch(images()), draws(step=step), step):
        sum(terms.values()).backward()
        found[name] = terms
    return found


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_each_map_has_a_verdict_a_place_and_a_gradient_at_the_image(norm):
    critic, seen = frozen(norm).eval(), images(16).requires_grad_()
    logits = critic(seen)
    assert [view.shape for view in logits] == [(16, 256), (16, 64), (16, 16)]
    for view in logits:
        assert torch.autograd.grad(view.mean(), seen, retain_graph=True)[0].abs().sum() > 0
    alone = critic(images(16)[:8])
    mixed = critic(torch.cat([images(16)[:1], -images(16)[:1].expand(7, -1, -1, -1)]))
    for view, half, other in zip(logits, alone, mixed):
        torch.testing.assert_close(view[:8], half, atol=1e-3, rtol=1e-3)
        assert torch.allclose(half[:1], other[:1], atol=1e-3) == (norm == "group")


def test_the_frozen_network_is_no_part_of_the_critic():
    critic = frozen()
    task = task_of(critic, **EVERYTHING)
    assert {name.split(".")[0] for name in critic.state_dict()} == {"heads"}
    before = copy.deepcopy(critic.extractor.module.state_dict())
    flags = [p.requires_grad for p in critic.extractor.module.parameters()]
    optimizer = torch.optim.AdamW(task.players["critic"].parameters(), 1e-2, weight_decay=0.1)
    heads = [p.clone() for p in critic.parameters()]
    run(task)
    optimizer.step()
    critic.train(), task.players["critic"].train()
    assert all(torch.equal(value, before[name]) for name, value in critic.extractor.module.state_dict().items())
    assert not any(flags) and all(p.grad is None for p in critic.extractor.module.parameters())
    assert not any(module.training for module in critic.extractor.module.modules())
    assert not any(torch.equal(a, b) for a, b in zip(heads, critic.parameters()))
    assert Average(task.players["critic"], 0.9).module.critic.extractor.module is critic.extractor.module


def test_a_critic_of_frozen_features_is_saved_without_them(tmp_path):
    critic = frozen().eval()
    critic.save_pretrained(tmp_path)
    again = FrozenFeatures.from_pretrained(tmp_path).eval()
    with pytest.raises(ValueError, match="judges by classifier, which it does not have"):
        again(images())
    for ours, theirs in zip(again.judge_by(teacher())(images()), critic(images()), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"maps of \[4, 8, 16\] channels, this critic's heads are for \[4, 8\]"):
        FrozenFeatures([4, 8], "classifier").judge_by(teacher())


def test_the_largest_singular_value_becomes_one_and_only_training_moves_its_direction():
    torch.manual_seed(0)
    layer, x = SpectralConv1d(5, 7, 3), torch.randn(2, 5, 9)
    for _ in range(30):
        layer(x)
    largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    ring = F.pad(x, (1, 1), mode="circular")
    torch.testing.assert_close(layer(x), F.conv1d(ring, layer.weight / largest, layer.bias))
    kept = layer.direction.clone()
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    layer.requires_grad_(False)(x), layer.requires_grad_(True).eval()(x)
    assert torch.equal(layer.direction, kept)
    layer.train()(x)
    assert not torch.equal(layer.direction, kept)


def test_virtual_batches_are_of_eight_images_at_most():
    x, norm = torch.randn(16, 3, 5), VirtualBatchNorm(3, 8)
    parts = [(h - h.mean((0, 2), keepdim=True)) / (h.var((0, 2), keepdim=True, correction=0) + 1e-6).sqrt()
             for h in x.split(8)]  # fmt: skip
    torch.testing.assert_close(norm(x), torch.cat(parts))
    torch.testing.assert_close(norm.eval()(x), norm.train()(x))
    halves = torch.cat([norm(x[:6]), norm(x[6:12])])  # twelve are two groups of six
    torch.testing.assert_close(norm(x[:12]), halves)
    alone = VirtualBatchNorm(3, 1)
    torch.testing.assert_close(alone(x)[5:6], alone(x[5:6]))


def test_a_critic_with_batch_norm_learns_from_real_and_rebuilt_images_in_passes_of_their_own():
    task = task_of(frozen(norm="batch"), lecam=0.0)
    player, critic = task.players["critic"].eval(), task.game.critic
    real, fake = images(4), -images(4) / 3
    terms = task.game.critic_terms(player, real, fake, draws())
    expected = task.game.loss.critic_loss(critic(real), critic(fake))
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, atol=1e-5, rtol=1e-4)
    together = [view.chunk(2) for view in critic(torch.cat([real, fake]))]
    assert not torch.allclose(together[0][0], critic(real)[0], atol=1e-3)


def train_apart_on_half(rank: int) -> Reconstruction:
    """One batch's turns as process `rank` of two, with a critic that sees real and rebuilt images apart."""
    task = task_of(frozen(norm="batch", virtual_batch=1), lecam=0.1)
    for name, player in task.players.items():
        task.players[name] = torch.nn.parallel.DistributedDataParallel(player)
    rows = slice(2 * rank, 2 * rank + 2)
    for _, terms in task.turns(ImageBatch(images()[rows]), StepDraws(0, 0, rows, 4), 0):
        sum(terms.values()).backward()
    return task


def test_two_processes_train_a_critic_that_sees_both_sides_apart_as_one_does(tmp_path):
    alone = task_of(frozen(norm="batch", virtual_batch=1), lecam=0.1)
    run(alone)
    half = as_two(train_apart_on_half, tmp_path)
    for name in alone.players:
        pairs = zip(half.players[name].parameters(), alone.players[name].parameters(), strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)


def test_blur_keeps_even_images_and_the_mean_and_fades():
    x = images(2)
    assert torch.equal(blur(x, 0.0), x)
    even = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(blur(even, 0.5), even)
    variances = [blur(x, strength).var() for strength in (0.0, 0.2, 0.5, 1.0)]
    assert all(less < more for more, less in zip(variances, variances[1:]))
    task = task_of(Patch(8, 1), start=2, augmentation=Augmentation(probability=0.0, blur_fade=2), ahead=2)
    seen = [task.game.augment(x, draws(2, step=step), "real") for step in (0, 2, 3, 4)]
    for image, strength in zip(seen, (1.0, 1.0, 0.5, 0.0)):
        torch.testing.assert_close(image, blur(x, strength))


def test_a_batch_is_cropped_as_one_or_not_at_all():
    x, sides = images(3), []
    for step in range(24):
        seen = crop_batch(x, 6, draws(3, step=step))
        sides.append(seen.shape[2])
        if sides[-1] == 6:
            rows = x.unfold(2, 6, 1).unfold(3, 6, 1)  # [B, C, 11, 11, 6, 6]
            places = [(rows[i] == seen[i, :, None, None]).all(dim=(0, 3, 4)).nonzero().tolist() for i in range(3)]
            assert len(places[0]) == 1 and places[0] == places[1] == places[2]
    assert set(sides) == {6, 16} and crop_batch(x, 16, draws(3)) is x


def test_each_side_and_turn_has_draws_of_its_own_where_they_are_not_shared():
    game = task_of(Patch(8, 1), augmentation=Augmentation(shared=False)).game
    seen = [game.augment(images(), draws(), side) for side in ("tokenizer", "real", "fake", "fake")]
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2]) and torch.equal(seen[2], seen[3])
    moved = augment(images(), draws(), cutout=0.0, first="translation")
    assert not torch.allclose(moved, augment(images(), draws(), cutout=0.0))


def test_the_means_of_lecam_may_move_before_the_penalty():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5])
    before, after = LeCam(0.75, "before"), LeCam(0.75)
    after(real, fake)
    first = before(real, fake)
    assert first == after(real, fake) and first == pytest.approx((2 - 0.125) ** 2 / 2)
    assert not before.real.requires_grad


def given(*values: float, count: int = 1) -> GivenDraws:
    return GivenDraws({"augmentation": torch.tensor([[0.0, 0.0, 0.0, *values]]).expand(count, -1)})


def test_augmentation_by_hand():
    x, middle = images(1), (0.5,) * 7
    same = augment(x, given(*middle), cutout=0.0)
    torch.testing.assert_close(same, x)
    bright = augment(x, given(0.9, *middle[1:]), translation=0.0, cutout=0.0)
    torch.testing.assert_close(bright, x + 0.4)
    grey = augment(x, given(0.5, 0.0, *middle[2:]), translation=0.0, cutout=0.0)
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    contrast = augment(x, given(0.5, 0.5, 0.0, *middle[3:]), translation=0.0, cutout=0.0)
    torch.testing.assert_close(contrast - x.mean(), 0.5 * (x - x.mean()))
    moved = augment(x, given(0.5, 0.5, 0.5, 0.0, 0.99, 0.5, 0.5), colour=False, cutout=0.0)
    assert torch.equal(moved[:, :, 2:, :-2], x[:, :, :-2, 2:])  # two pixels of 16 down and to the left
    assert not moved[:, :, :2].any() and not moved[:, :, :, -2:].any()
    cut = augment(x, given(*middle), colour=False, translation=0.0)
    hole = torch.zeros(16, 16, dtype=torch.bool)
    hole[4:12, 4:12] = True
    assert not cut[..., hole].any() and torch.equal(cut[..., ~hole], x[..., ~hole])
    corner = augment(x, given(*middle[:5], 0.0, 0.99), colour=False, translation=0.0)
    assert not corner[:, :, :4, -4:].any() and torch.equal(corner[:, :, 4:], x[:, :, 4:])


def test_augmentation_is_a_function_of_the_draws_and_of_each_image_alone():
    x = images(8)
    whole = augment(x, draws(8))
    assert whole.shape == x.shape and torch.equal(whole, augment(x, draws(8)))
    assert torch.equal(augment(x[4:], StepDraws(0, 0, slice(4, 8), 8)), whole[4:])
    assert not torch.equal(augment(x, draws(8, step=1)), whole)
    assert torch.equal(augment(x, draws(8), probability=0.0), x)
    done = draws(400).uniform("augmentation", (DRAWS,))[:, 0] < 0.3
    changed = (augment(images(400), draws(400), 0.3, True, 0.0, 0.0) != images(400)).flatten(1).any(1)
    assert torch.equal(changed, done) and 0.2 < changed.float().mean() < 0.4
    leaf = x.clone().requires_grad_()
    assert torch.autograd.grad(augment(leaf, draws(8)).sum(), leaf)[0].isfinite().all()
    with pytest.raises(ValueError, match="probability is 2"):
        Augmentation(2.0)


def test_lecam_by_hand():
    means = LeCam(decay=0.75)
    real, fake = torch.tensor([2.0, -1.0]), [torch.tensor([0.5]), torch.tensor([-3.0, -1.0])]
    assert means(real, fake) == pytest.approx((4 + 0) / 2 + (0 + (9 + 1) / 2) / 2)
    torch.testing.assert_close(torch.stack([means.real, means.fake]), torch.tensor([0.25 * 0.5, 0.25 * -0.75]))
    again = means(real, fake)
    by_hand = (2 + 0.1875) ** 2 / 2 + ((3.125**2 + 1.125**2) / 2) / 2  # relu of -1 + 0.1875 and of 0.125 - 0.5 is 0
    assert again == pytest.approx(by_hand)
    kept = means.real.clone()
    means(torch.tensor([float("nan")]), fake)
    assert torch.equal(means.real, kept)


def test_views_count_equally_however_many_logits_each_has():
    real, fake = [torch.full((2, 9), 0.5), torch.zeros(2, 1)], [torch.zeros(2, 9), torch.full((2, 1), -0.5)]
    assert Hinge().critic_loss(real, fake) == {"real": 0.5 * (0.5 + 1) / 2, "fake": 0.5 * (1 + 0.5) / 2}
    assert LeastSquares().generator_loss(fake) == (1 + 1.5**2) / 2
    assert Hinge().generator_loss(torch.tensor([1.0, 3.0])) == -2
    assert feature_matching(real, real) == 0 and feature_matching(real, fake) == 0.5


@pytest.mark.parametrize("scales", [1, 3])
def test_scales_judge_images_down_to_the_smallest_they_name(scales):
    critic = MultiscalePatch(scales, 8, 1).eval()
    side = MultiscalePatch.smallest(Arguments.from_config(critic))
    logits, layers = critic(torch.zeros(2, 3, side, side), True)
    assert len(logits) == scales and logits[-1].shape == (2, 1, 1, 1) and len(layers) == 2 * scales
    with pytest.raises(RuntimeError):
        critic(torch.zeros(2, 3, side - 1, side - 1))
    assert torch.equal(critic(torch.zeros(2, 3, side, side))[0], logits[0])


def test_feature_matching_pulls_rebuilt_images_to_the_real_ones_in_the_critic_s_layers():
    weights = {"adversarial": 0.0, "feature_matching": 2.0}
    task = task_of(critic := MultiscalePatch(2, 4, 1), weights, adaptive=False, feature_matching=True, start=0)
    terms = next(iter(task.turns(ImageBatch(images()), draws(), 0)))[1]
    tokenizer = task.players["tokenizer"]
    made = tokenizer(images(), None, draws()).images
    pairs = zip(critic(images(), True)[1], critic(made, True)[1])
    expected = 2 * sum((theirs - own.detach()).abs().mean() for own, theirs in pairs) / 4
    torch.testing.assert_close(terms["feature_matching"], expected.detach())
    ours = torch.autograd.grad(sum(terms.values()), tokenizer.last_layer, retain_graph=True)[0]
    pixel = (made - images()).square().mean()
    torch.testing.assert_close(
        ours, torch.autograd.grad(pixel + expected, tokenizer.last_layer)[0], rtol=1e-4, atol=1e-6
    )
    with pytest.raises(ValueError, match="FrozenFeatures shows no layers to match"):
        task_of(frozen(), weights, feature_matching=True)


def test_the_critic_may_learn_before_the_tokenizer_obeys():
    task = task_of(Patch(8, 1), start=3, ahead=2)
    assert set(run(task, 0)) == {"tokenizer"}
    early, late = run(task, 1), run(task, 3)
    assert set(early) == set(late) == {"tokenizer", "critic"}
    assert "adversarial" not in early["tokenizer"] and "adversarial" in late["tokenizer"]
    with pytest.raises(ValueError, match="adversary.ahead is 4, and start is 3"):
        task_of(Patch(8, 1), start=3, ahead=4)


class Seeing(nn.Module):
    """Keeps what it is shown."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.shown = inner, []

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x.detach())
        return self.inner(x)


def test_real_and_rebuilt_images_are_augmented_alike_in_both_turns():
    task = task_of(critic := Patch(8, 1), augmentation=Augmentation())
    critic.main = Seeing(critic.main)
    run(task)
    told, learned = critic.main.shown
    real, fake = learned.chunk(2)
    assert torch.equal(told, fake)
    assert torch.equal(real, augment(images(), draws())) and not torch.equal(real, images())


def test_the_critic_may_learn_from_what_the_updated_tokenizer_rebuilds_rounded_to_eight_bits():
    """RAE's: its turn follows the update, and what it then learns from no noise has touched."""
    task = task_of(critic := Patch(8, 1), rebuild=True, eight_bits=True)
    tokenizer, critic.main = task.players["tokenizer"], Seeing(critic.main)
    turns = task.turns(ImageBatch(images()), draws(), 0)
    next(turns)
    with torch.no_grad():
        tokenizer.decoder.conv_out.bias += 0.3  # the update of the tokenizer's turn
    _, terms = next(turns)
    judged, learned = critic.main.shown
    real, fake = learned.chunk(2)
    expected = tokenizer.eval()(images()).images
    levels = (fake + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert torch.equal(real, images()) and (fake - expected.clamp(-1, 1)).abs().max() <= 0.5 / 127.5 + 1e-6
    assert not torch.allclose(judged, fake, atol=0.1) and critic.main.training
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in tokenizer.parameters())
    again = task_of(critic := Patch(8, 1), rebuild=True)
    next(turns := again.turns(ImageBatch(images()), draws(), 0)), next(turns)
    assert again.players["tokenizer"].training


def test_a_phase_may_move_a_few_modules_of_its_part():
    task = task_of(Patch(8, 1))
    tokenizer = task.players["tokenizer"]
    tokenizer.requires_grad_(True)
    phase = replace(task.phase, train="decoder", only=("decoder.conv_out", "decoder.up_blocks.1"))
    task = Reconstruction(tokenizer, phase, task.losses, Patch(8, 1))
    run(task)
    moved = {name for name, p in tokenizer.named_parameters() if p.grad is not None}
    assert moved == {name for name, p in tokenizer.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in moved} == {"conv_out", "up_blocks"}
    assert not any(name.startswith("decoder.up_blocks.0") for name in moved)
    for name in ("decoder.conv_ou", "encoder"):
        with pytest.raises(ValueError, match=f"decoder has no module '{name}' that can be trained"):
            list(tokenizer.trainable("decoder", (name,)))


@dataclass
class Pictures:
    """Sixteen images, as the loop reads them."""

    def __len__(self) -> int:
        return 16

    def batch(self, indices: Tensor, seeds: Tensor) -> ImageBatch:
        return ImageBatch(images(16)[indices])


def fit(folder: Path, steps: int) -> Reconstruction:
    task = task_of(frozen(), **EVERYTHING)
    loop = Loop(steps, RATES, batch=4, ema=0.9, save_every=2, weight_decay={"critic": 0.1})
    train(task, Pictures(), TrainingRun(loop, folder, 3, Accelerator(cpu=True)))
    return task


def test_a_training_that_was_stopped_goes_on_to_the_same_critic_and_means(tmp_path):
    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", 2)
    parts = fit(tmp_path / "parts", 4)
    states = [task.players["critic"].state_dict() for task in (whole, parts)]
    assert {"means.real", "means.fake"} < set(states[0]) and states[0]["means.real"] != 0
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_weight_decay_may_be_a_player_s_own():
    assert Loop(1, RATES, weight_decay=0.1).decay_of("critic") == 0.1
    own = Loop(1, RATES, weight_decay={"critic": 5e-4})
    assert (own.decay_of("critic"), own.decay_of("tokenizer")) == (5e-4, 0.0)


def train_on_half(rank: int) -> Reconstruction:
    """Two steps' turns as process `rank` of two; the second knows what the first has left in the running means."""
    task = task_of(frozen(), **EVERYTHING)
    for name, player in task.players.items():
        task.players[name] = nn.parallel.DistributedDataParallel(player)
    rows = slice(2 * rank, 2 * rank + 2)
    for step in range(2):
        for _, terms in task.turns(ImageBatch(images()[rows]), StepDraws(0, step, rows, 4), step):
            sum(terms.values()).backward()
    return task


def test_two_processes_train_as_one(tmp_path):
    alone = task_of(frozen(), **EVERYTHING)
    run(alone, 0), run(alone, 1)
    half = as_two(train_on_half, tmp_path)
    for name in ("real", "fake"):
        torch.testing.assert_close(getattr(half.game.means, name), getattr(alone.game.means, name))
    for name, player in alone.players.items():
        for ours, theirs in zip(half.players[name].parameters(), player.parameters(), strict=True):
            if ours.requires_grad:
                torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


RECIPE = [
    "tokenizer.phases.main.adversary={critic: {kind: frozen_features}}",
    "tokenizer.phases.main.weights.adversarial=0.1",
    "tokenizer.phases.main.loop.lr.critic=1e-3",
]


@pytest.mark.parametrize("channels, count", [("grey", 1), ("rgb", 3), ("rgba", 4)])
def test_a_critic_reads_the_channels_of_the_images(channels, count, tmp_path):
    patch = "tokenizer.phases.main.adversary={critic: {kind: patch, width: 8, layers: 1}}"
    recipe = load("digits", [patch, *RECIPE[1:], f"data.channels={channels}", "data.size=[16,24]"])
    check_recipe(recipe)
    networks = FrozenNetworks(recipe, None, tmp_path, Accelerator(cpu=True))
    critic = build_critic(networks, recipe.tokenizer.phases["main"], 5)
    assert critic.config.channels == count and critic(torch.zeros(2, count, 16, 24)).shape[0] == 2
    with pytest.raises(ValueError, match="critic.channels is determined by an earlier stage"):
        check_recipe(load("digits", [patch.replace("width: 8", "channels: 3"), *RECIPE[1:]]))


def test_the_stand_in_takes_dino_s_place_and_both_are_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("TESSERA_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    recipe, accelerator = load("digits", RECIPE), Accelerator(cpu=True)
    check_recipe(recipe)
    phase, pictures = recipe.tokenizer.phases["main"], Images(recipe.data, "train")
    teacher().save_pretrained(tmp_path / "stand_in")  # so that none is trained here
    with caplog.at_level(logging.WARNING):
        critic = build_critic(FrozenNetworks(recipe, pictures, tmp_path, accelerator), phase, 5)
    assert "the weights dino_small are not on this machine" in caplog.text
    assert critic.config.source == "classifier" and critic.name == "_classifier"
    task = task_of(critic)
    run(task)
    assert {"logits_real_classifier", "logits_fake_classifier"} < set(task.metrics)
    node = phase.adversary.critic | {"teacher": "classifier"}
    with pytest.raises(ValueError, match="^layers is for a transformer"):
        check_extractor(recipe, "critics", node | {"layers": [1]})


def test_dino_is_read_as_published_and_judged_at_its_quarters(tmp_path):
    whole = t.ViTModel(t.ViTConfig(**IMAGE | {"num_hidden_layers": 4}), add_pooling_layer=False).eval()
    whole.config.save_pretrained(tmp_path / "dino-vits16")
    torch.save(whole.state_dict(), tmp_path / "dino-vits16" / "pytorch_model.bin")
    model = VisionModel.load(tmp_path / "dino-vits16", layers=[0, 1, 4])
    tokens = whole(pixel_values=model.pixels(images())).last_hidden_state
    torch.testing.assert_close(model.maps(images())[2].flatten(2).mT, tokens[:, 1:])
    torch.testing.assert_close(model.features(images()), tokens[:, 0])
    recipe = replace(load("digits"), weights=Weights(dino_small=str(tmp_path / "dino-vits16")))
    networks = FrozenNetworks(recipe, Images(recipe.data, "train"), tmp_path, Accelerator(cpu=True))
    found = networks.extractor("critics", {"kind": "frozen_features"})
    blocks = whole(pixel_values=model.pixels(images()), output_hidden_states=True).hidden_states
    for layer, shown in zip((0, 1, 4), (found.maps(images())[i] for i in (0, 1, 4))):
        torch.testing.assert_close(shown.flatten(2).mT, blocks[layer][:, 1:] + blocks[layer][:, :1])
    torch.testing.assert_close(whole.layernorm(blocks[4]), tokens)
    plain = networks.extractor("critics", {"kind": "frozen_features", "layers": [4, 1, 4], "class_token": False})
    for layer, shown in zip((4, 1, 4), plain.maps(images()), strict=True):  # RAE's: the last block's map first
        torch.testing.assert_close(shown.flatten(2).mT, blocks[layer][:, 1:])
    assert found.layers == [0, 1, 2, 3, 4] and not (tmp_path / "stand_in").exists()
    critic = build("critics", {"kind": "frozen_features"}, widths=list(found.widths), source=found.name).judge_by(found)
    leaf = images().requires_grad_()
    assert torch.autograd.grad(Hinge().generator_loss(critic(leaf)), leaf)[0].abs().sum() > 0
    with pytest.raises(ValueError, match="there is no layer 5 in a vit of 4"):
        check_extractor(recipe, "critics", {"kind": "frozen_features", "layers": [5]})


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["tokenizer.phases.main.adversary.critic.widths=[3]"], "critic.widths is determined by an earlier stage"),
        (["tokenizer.phases.main.adversary.critic.teacher=nothing"], "critic.teacher: 'nothing' is no folder"),
        (["tokenizer.phases.main.adversary.feature_matching=true"], "FrozenFeatures shows no layers to match"),
        (["tokenizer.phases.main.loop.weight_decay={critik: 0.1}"], "no player 'critik'; did you mean 'critic'"),
        (["tokenizer.phases.main.only=[decoder.conv_ot]"], "main.only: .* did you mean 'decoder.conv_out'"),
        (["tokenizer.phases.main.adversary.augmentation={probability: 3}"], "augmentation.probability is 3"),
    ],
)  # fmt: skip
def test_planted_mistakes_stop_before_training(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_recipe(load("digits", [*RECIPE, *overrides]))


def test_the_blurred_critic_halves_blurred_maps_and_takes_the_largest_of_every_cell():
    torch.manual_seed(0)
    critic, seen = Blurred(width=8, stages=2, grid=4), images(3)
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = kernel[:, None] * kernel[None, :] / 64
    layers = [layer for layer in critic.main if isinstance(layer, (nn.Conv2d, nn.GroupNorm))]
    enter, first, norm1, second, norm2, mix, leave = layers
    h = F.leaky_relu(F.conv2d((seen + 1) / 2, enter.weight, enter.bias, padding="same"), 0.1)
    for convolution, norm in ((first, norm1), (second, norm2)):
        h = F.conv2d(h, convolution.weight, convolution.bias, padding="same")
        h = F.conv2d(h, kernel.expand(len(h[0]), 1, 4, 4), stride=2, padding=1, groups=len(h[0]))
        h = F.leaky_relu(F.group_norm(h, len(h[0]), norm.weight, norm.bias), 0.1)
    h = F.leaky_relu(F.conv2d(F.adaptive_max_pool2d(h, 4), mix.weight, mix.bias), 0.1)
    expected = F.conv2d(h, leave.weight, leave.bias, padding="same")
    torch.testing.assert_close(critic(seen), expected, atol=1e-5, rtol=1e-4)
    logits, inner = critic(seen, True)
    assert torch.equal(logits, critic(seen)) and [len(each[0]) for each in inner] == [8, 8, 16, 16]
    assert Blurred().main[4].num_groups == 32 and Blurred()(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 16, 16)
    assert HalvingBlur()(torch.ones(1, 2, 5, 7)).shape == (1, 2, 3, 4)


def test_lecam_may_be_of_the_mean_logit():
    real, fake = torch.tensor([[3.0, -1.0]]), torch.tensor([[-2.0, 1.0]])
    means = LeCam(0.5, of="means")
    assert means(real, fake) == 1.0**2 + 0.5**2  # relu(1 - 0)^2 + relu(0 + 0.5)^2
    assert means(real, fake) == (1 + 0.25) ** 2 + (0.5 + 0.5) ** 2  # the means are 0.5 and -0.25 now
    assert LeCam(0.5)(real, fake) != 1.25
