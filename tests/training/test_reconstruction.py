"""The task of training a tokenizer: turns, adaptive weight, frozen parts, and terms against weights."""

from dataclasses import replace

import pytest
import torch
from support.two_processes import as_two
from torch import Tensor

from pipeline.checks.phase import terms_of
from pipeline.critics.patch import Patch
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.base import Loss
from pipeline.losses.pixel import Pixel
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.building import plan_built_tokenizer
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.training.adversarial_game import frozen_judge
from pipeline.training.reconstruction import Reconstruction

WEIGHTS = {"pixel": 2.0, "kl": 1e-3, "adversarial": 0.5}
CONV = {"bottleneck": {"kind": "gaussian", "dim": 3}, "width": 8, "multipliers": [1, 2], "blocks": 1}


def phase(train: str = "all", weights: dict[str, float] = WEIGHTS, **adversary) -> Phase:
    contest = Adversary({"kind": "patch", "layers": 1}, **adversary) if "adversarial" in weights else None
    return Phase(Loop(1, {"tokenizer": 1e-3}), weights, train=train, adversary=contest)


def task_of(of: Phase, **losses: Loss) -> Reconstruction:
    torch.manual_seed(1)
    tokenizer = ConvAutoencoder(image_size=16, **CONV)
    critic = Patch(8, 1) if of.adversary else None
    return Reconstruction(tokenizer, of, losses or {"pixel": Pixel("l2")}, critic)


def batch(count: int = 4) -> ImageBatch:
    return ImageBatch(torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1)


def draws(count: int = 4) -> StepDraws:
    return StepDraws(0, 0, slice(0, count), count)


def gradients(task: Reconstruction, player: str) -> list[Tensor]:
    return [p.grad for p in task.players[player].parameters() if p.requires_grad]


def run(task: Reconstruction, step: int = 0) -> dict[str, dict[str, Tensor]]:
    """All turns of one batch, each with its backward, as the loop does it but without a step."""
    found = {}
    for name, terms in task.turns(batch(), draws(), step):
        sum(terms.values()).backward()
        found[name] = terms
    return found


def test_a_term_ends_at_the_step_that_the_phase_states():
    task = task_of(replace(phase(weights={"pixel": 2.0, "kl": 1e-3}), until={"kl": 3}))
    before, after = (next(iter(task.turns(batch(), draws(), step)))[1] for step in (2, 3))
    assert before["kl"] > 0 and after["kl"] == 0 and torch.equal(before["pixel"], after["pixel"])
    with pytest.raises(ValueError, match="until.kk: there is no loss term 'kk'"):
        task_of(replace(phase(weights={"pixel": 2.0, "kl": 1e-3}), until={"kk": 3}))


def two_backward_passes(task: Reconstruction) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
    """The reference: terms, adaptive weight and gradients with a backward pass for each of the two norms."""
    tokenizer, critic, images = task.players["tokenizer"], task.players["critic"], batch().images
    rebuilt = tokenizer(images, None, draws())
    pixel = WEIGHTS["pixel"] * (rebuilt.images - images).square().mean()
    adversarial = -critic(rebuilt.images).mean()
    last = tokenizer.decoder.conv_out.weight
    of_pixel, of_critic = (torch.autograd.grad(v, last, retain_graph=True)[0].norm() for v in (pixel, adversarial))
    weight = WEIGHTS["adversarial"] * (of_pixel / (of_critic + 1e-4)).clamp(0, 1e4).detach()
    terms = {"kl": WEIGHTS["kl"] * rebuilt.terms["kl"], "pixel": pixel, "adversarial": weight * adversarial}
    return terms, weight, torch.autograd.grad(sum(terms.values()), list(tokenizer.parameters()))


def test_the_adaptive_weight_and_all_gradients_are_those_of_two_backward_passes():
    task = task_of(phase())
    terms, weight, expected = two_backward_passes(task)
    first = next(iter(task.turns(batch(), draws(), 0)))
    assert first[0] == "tokenizer" and set(first[1]) == set(terms)
    for name, value in terms.items():
        torch.testing.assert_close(first[1][name].detach(), value.detach())
    torch.testing.assert_close(task.metrics["adaptive_weight"], weight)
    assert weight != WEIGHTS["adversarial"]
    sum(first[1].values()).backward()
    for ours, theirs in zip(gradients(task, "tokenizer"), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_the_ratio_of_gradients_is_limited_and_divided_as_the_recipe_says():
    weights = {}
    for name, settings in {"plain": {}, "limited": {"largest": 1e-3}, "damped": {"epsilon": 1e6}}.items():
        task = task_of(phase(**settings))
        next(iter(task.turns(batch(), draws(), 0)))
        weights[name] = task.metrics["adaptive_weight"] / WEIGHTS["adversarial"]
    assert weights["plain"] > weights["limited"] == pytest.approx(1e-3)
    assert weights["damped"] < 1e-3 * weights["plain"]


def test_without_adaptation_the_weight_is_the_recipe_s():
    task = task_of(phase(adaptive=False))
    terms = next(iter(task.turns(batch(), draws(), 0)))[1]
    with frozen_judge(task.players["critic"]) as judge:
        made = task.players["tokenizer"](batch().images, None, draws()).images
        torch.testing.assert_close(terms["adversarial"].detach(), -0.5 * judge(made).mean().detach())
    assert "adaptive_weight" not in task.metrics


def test_no_turn_leaves_a_gradient_on_the_other_player():
    task = task_of(phase())
    turns = task.turns(batch(), draws(), 0)
    name, terms = next(turns)
    sum(terms.values()).backward()
    assert name == "tokenizer" and all(g is None for g in gradients(task, "critic"))
    assert all(p.requires_grad for p in task.players["critic"].parameters())
    before = [g.clone() for g in gradients(task, "tokenizer")]
    name, terms = next(turns)
    sum(terms.values()).backward()
    assert name == "critic" and all(g.abs().sum() > 0 for g in gradients(task, "critic"))
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(task, "tokenizer")))
    assert next(turns, None) is None


def test_a_judge_restores_what_was_frozen_before_even_after_an_error():
    critic = Patch(8, 1)
    critic.main[0].requires_grad_(False)
    flags = [p.requires_grad for p in critic.parameters()]
    with pytest.raises(RuntimeError), frozen_judge(critic) as judge:
        assert judge is critic and not any(p.requires_grad for p in judge.parameters())
        raise RuntimeError
    assert [p.requires_grad for p in critic.parameters()] == flags


def test_before_its_start_the_critic_is_not_run():
    task = task_of(phase(start=3))
    calls = []
    task.players["critic"].register_forward_hook(lambda *_: calls.append(1))
    assert set(run(task, step=2)) == {"tokenizer"} and not calls
    found = run(task, step=3)
    assert set(found) == {"tokenizer", "critic"} and len(calls) == 2
    assert found["tokenizer"]["adversarial"] != 0


def test_the_critic_s_turn_pulls_real_and_rebuilt_apart():
    task = task_of(phase(start=0))
    optimizer = torch.optim.Adam(task.players["critic"].parameters(), 1e-2)
    for _ in range(20):
        for name, terms in task.turns(batch(), draws(), 0):
            if name == "critic":
                optimizer.zero_grad()
                sum(terms.values()).backward()
                optimizer.step()
    assert task.metrics["logits_real"] > task.metrics["logits_fake"] + 0.5


@pytest.mark.parametrize("train", ["encoder", "decoder"])
def test_a_phase_moves_its_part_alone(train):
    task = task_of(phase(train, adaptive=train == "decoder"))
    tokenizer, images = task.players["tokenizer"], batch().images
    code = tokenizer.encode(images).z
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    trained = {id(p) for p in tokenizer.trainable(train)}
    optimizer = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    run(task)
    optimizer.step()
    for name, parameter in tokenizer.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in trained), name
    assert torch.equal(tokenizer.encode(images).z, code) == (train == "decoder")


class CodeSize(Loss):
    """A loss of the code, which has no gradient at the image."""

    of_pixels = False
    terms = ("code_size",)

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        return {"code_size": rebuilt.code.z.square().mean()}


def test_losses_of_the_code_keep_their_own_gradient(monkeypatch):
    weights = {"pixel": 1.0, "kl": 0.0, "code_size": 3.0}
    stated = replace(phase(weights=weights), losses={"pixel": {"kind": "pixel"}, "size": {"kind": "code_size"}})
    classes = {"pixel": Pixel, "code_size": CodeSize}
    monkeypatch.setattr("pipeline.checks.phase.find", lambda slot, kind: classes[kind])
    task = Reconstruction(tokenizer := ConvAutoencoder(16, **CONV), stated, {"pixel": Pixel(), "size": CodeSize()})
    (_, terms), *rest = task.turns(batch(), draws(), 0)
    assert not rest
    rebuilt = tokenizer(batch().images, None, draws())
    expected = 3 * rebuilt.code.z.square().mean() + (rebuilt.images - batch().images).abs().mean()
    torch.testing.assert_close(sum(terms.values()), expected)
    ours = torch.autograd.grad(sum(terms.values()), list(tokenizer.parameters()))
    for a, b in zip(ours, torch.autograd.grad(expected, list(tokenizer.parameters()))):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_every_term_has_a_weight_and_every_weight_a_term():
    plan = plan_built_tokenizer(ConvAutoencoder(image_size=16, **CONV))
    assert terms_of(phase(), plan) == {"pixel", "kl", "adversarial"}
    both = replace(phase(), losses={"a": {"kind": "pixel"}, "b": {"kind": "perceptual"}})
    assert terms_of(both, plan) == {"pixel", "perceptual", "kl", "adversarial"}
    with pytest.raises(ValueError, match="there is no loss term 'perceptual'"):
        task_of(phase(weights={"pixel": 1.0, "kl": 0.0, "adversarial": 1.0, "perceptual": 1.0}))
    with pytest.raises(ValueError, match="weights.kl is missing"):
        task_of(phase(weights={"pixel": 1.0, "adversarial": 1.0}))
    with pytest.raises(ValueError, match="two losses give the term 'pixel'"):
        terms_of(replace(phase(), losses={k: {"kind": "pixel"} for k in "ab"}), plan)


def test_adversaries_that_cannot_work_are_refused():
    tokenizer = ConvAutoencoder(image_size=16, **CONV)
    for of, critic, words in (
        (phase(), None, "needs its critic"),
        (phase(weights={"pixel": 1.0, "kl": 0.0}), Patch(8, 1), "needs a phase with an adversary"),
        (phase(), Patch(8, 3), "24 pixels per side or more, not 16"),
        (phase("encoder"), Patch(8, 1), "adversary.adaptive .* set it to false"),
    ):
        with pytest.raises(ValueError, match=words):
            Reconstruction(tokenizer, of, {"pixel": Pixel()}, critic)


def train_on_half(rank: int) -> Reconstruction:
    """One batch's turns as process `rank` of two."""
    task = task_of(phase())
    for name, player in task.players.items():
        task.players[name] = torch.nn.parallel.DistributedDataParallel(player)
    rows = slice(2 * rank, 2 * rank + 2)
    for _, terms in task.turns(ImageBatch(batch().images[rows]), StepDraws(0, 0, rows, 4), 0):
        sum(terms.values()).backward()
    return task


def test_two_processes_weigh_and_train_as_one(tmp_path):
    alone = task_of(phase())
    run(alone)
    half = as_two(train_on_half, tmp_path)
    torch.testing.assert_close(half.metrics["adaptive_weight"], alone.metrics["adaptive_weight"])
    for name in alone.players:
        for ours, theirs in zip(gradients(half, name), gradients(alone, name), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
