"""The objectives of causal networks: their losses, sampling, guidance, orders and regeneration."""

import math
from types import SimpleNamespace

import generating
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.code import Code, Condition, LatentSpec, plain_ids, stack_ids
from pipeline.components import Arguments
from pipeline.draws import GivenDraws, ImageDraws, StepDraws
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.objectives.base import Objective
from pipeline.objectives.next_token import NextToken
from pipeline.objectives.random_order import OrderRandomness, RandomOrder
from pipeline.samplers.autoregression import TokenSampler, random_order
from pipeline.samplers.choice import Choice
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.request import SamplingRequest

SPEC = LatentSpec(grid=(2, 3), dim=4, vocab=7)
PAIRS = LatentSpec(grid=(2, 3), dim=4, vocab=7, codebooks=2)
SIZE = {"num_classes": 5, "depth": 2, "width": 16, "heads": 2}
ANNEALED = RandomOrder(anneal_start=10, anneal_end=30)
OBJECTIVES = [(NextToken(), {}), (ANNEALED, {}), (ANNEALED, {"order": "random"})]
every_objective = pytest.mark.parametrize("objective, settings", OBJECTIVES, ids=["next_token", "annealed", "random"])
every_spec = pytest.mark.parametrize("spec", [SPEC, PAIRS], ids=["one_codebook", "two_codebooks"])


def network(spec: LatentSpec = SPEC, **arguments) -> CausalTransformer:
    """Small, with every weight random, so that ids, places and classes matter."""
    model = CausalTransformer(
        list(spec.grid), spec.vocab, codebooks=spec.codebooks, target_positions=True, **(SIZE | arguments)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def labels(batch: int = 4) -> Condition:
    return Condition(labels=torch.arange(batch) % 5)


def ids_of(spec: LatentSpec, batch: int = 4) -> Tensor:
    return plain_ids(torch.randint(spec.vocab, (batch, spec.tokens, spec.codebooks)))


def sampled(
    objective: Objective, model: nn.Module, spec: LatentSpec = SPEC, condition=None, seeds=range(4), **settings
):
    draws = ImageDraws.from_seeds(list(seeds))
    return generating.sample(objective, model, condition, spec, draws, spec.tokens, **settings).ids


def uncached(model, condition, spec, draws, guidance, choice, order=None, known=None) -> Tensor:
    """Sampling as it is defined: for every id the whole code is asked anew, both halves until the end."""
    uniform = draws.uniform("choice", (spec.tokens, spec.codebooks))
    order = torch.arange(spec.tokens).expand(len(uniform), -1) if order is None else order
    ids = torch.zeros(uniform.shape, dtype=torch.int64)  # in the order of generation
    for i in range(spec.tokens):
        for k in range(spec.codebooks):
            logits = model(ids, condition, order)[:, i, k]
            if guidance.scale != 1:
                base = model(ids, model.null(condition), order)[:, i, k]
                logits = base + guidance.at(1 - i / spec.tokens) * (logits - base)
            ids[:, i, k] = choice(logits, uniform[:, i, k])
        if known is not None:
            given, kept = (t.gather(1, order) if t.ndim == 2 else t.gather(1, index(order, t)) for t in known)
            ids[:, i] = torch.where(kept[:, i, None], given[:, i], ids[:, i])
    return plain_ids(torch.zeros_like(ids).scatter(1, index(order, ids), ids))


def index(order: Tensor, ids: Tensor) -> Tensor:
    return order[..., None].expand_as(ids)


GUIDANCES = {
    "unguided": Guidance(),
    "constant": Guidance(2.0),
    "rising": Guidance(4.0, schedule="cosine", power=1.5),
    "late": Guidance(3.0, interval=(0.0, 0.6)),
    "early": Guidance(3.0, interval=(0.6, 1.0)),
    "never": Guidance(3.0, interval=(0.0, 0.0)),
}


@every_spec
@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES)
@torch.no_grad()
def test_sampling_is_asking_the_whole_code_anew(spec, guidance):
    model, choice = network(spec), Choice(0.9, top_k=5)
    expected = uncached(model, labels(), spec, ImageDraws.from_seeds([0, 1, 2, 3]), guidance, choice)
    found = sampled(NextToken(), model, spec, labels(), guidance=guidance, temperature=0.9, top_k=5)
    assert found.shape == expected.shape and torch.equal(found, expected)


@every_spec
@torch.no_grad()
def test_sampling_in_a_random_order_is_too(spec):
    model, draws = network(spec), ImageDraws.from_seeds([0, 1, 2, 3])
    draws.uniform("choice", (spec.tokens, spec.codebooks))
    order = random_order(draws, spec.tokens)
    expected = uncached(model, labels(), spec, ImageDraws.from_seeds([0, 1, 2, 3]), Guidance(2.0), Choice(), order)
    found = sampled(ANNEALED, model, spec, labels(), guidance=Guidance(2.0), order="random")
    assert torch.equal(found, expected)


@every_objective
@every_spec
@pytest.mark.parametrize("classes", [5, 0], ids=["classes", "unconditional"])
def test_an_image_depends_on_its_own_label_and_seed_alone(objective, settings, spec, classes):
    model = network(spec, num_classes=classes)
    condition, guidance = (labels(), Guidance(2.0)) if classes else (None, Guidance())
    together = sampled(objective, model, spec, condition, [5, 6, 7, 5], guidance=guidance, **settings)
    assert together.shape == ((4, 6) if spec.codebooks == 1 else (4, 6, 2)) and together.dtype == torch.int64
    for i, seed in enumerate([5, 6, 7, 5]):
        alone = None if condition is None else condition[i : i + 1]
        one = sampled(objective, model, spec, alone, [seed], guidance=guidance, **settings)
        assert torch.equal(one, together[i : i + 1])
    assert not torch.equal(together[0], together[1])
    assert classes or torch.equal(together[0], together[3])


def test_scale_1_asks_nothing_but_the_conditional_half_and_an_end_of_guidance_drops_the_other():
    model, rows = network(), []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    plain = sampled(NextToken(), model, condition=labels())
    assert torch.equal(sampled(NextToken(), model, condition=labels(), guidance=Guidance(1.0, power=2.0)), plain)
    assert rows == [4] * 12  # one evaluation a token, the first of which is told the class alone
    rows.clear()
    sampled(NextToken(), model, condition=labels(), guidance=Guidance(2.0, interval=(0.5, 1.0)))
    assert rows == [8] * 4 + [4] * 2  # u = 1, 5/6, 4/6 and 3/6 are guided


def test_steps_are_network_evaluations():
    model, calls = network(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    sampled(NextToken(), model, condition=labels(), guidance=Guidance(2.0))
    assert len(calls) == NextToken().default_steps(SPEC) == 6


class Chain(nn.Module):
    """A Markov chain whose rows depend on the label: logits of the next token, given the one before."""

    config = SimpleNamespace(num_classes=1, vocab=4)

    def __init__(self):
        super().__init__()
        self.table = torch.randn(2, 5, 4)  # [label or null, token before or none, token]

    def null(self, condition: Condition) -> Condition:
        return Condition(labels=torch.full_like(condition.labels, 1))

    def begin(self, batch, condition, order, device):
        return condition.labels

    def advance(self, memory, ids, choose):
        before = torch.full_like(memory, 4) if ids is None else ids[:, 0]
        return choose(self.table[memory, before][:, None], 0)


def test_samples_have_the_guided_distribution():
    chain, count = Chain(), 40_000
    draws = GivenDraws({"choice": torch.rand(count, 2, 1)})
    condition, spec = Condition(labels=torch.zeros(count, dtype=torch.int64)), LatentSpec((2,), 1, vocab=4)
    ids = generating.sample(NextToken(), chain, condition, spec, draws, 2, Guidance(2.5), temperature=1.3).ids
    guided = (chain.table[1] + 2.5 * (chain.table[0] - chain.table[1])) / 1.3
    first, then = guided[4].softmax(-1), guided[:4].softmax(-1)
    found = torch.bincount(ids[:, 0] * 4 + ids[:, 1], minlength=16).view(4, 4) / count
    assert torch.allclose(found, first[:, None] * then, atol=0.012)  # four standard errors are 0.01


# regeneration


@every_objective
@every_spec
def test_regeneration_keeps_all_or_nothing_at_its_ends(objective, settings, spec):
    model, code, condition = network(spec), Code(ids=ids_of(spec)), labels()
    draws = [ImageDraws.from_seeds(list(range(4))) for _ in range(2)]
    kept = generating.regenerate(objective, model, code, condition, 1.0, draws[0], 6, Guidance(2.0), **settings)
    assert torch.equal(kept.ids, code.ids) and kept.ids is not code.ids
    free = generating.regenerate(objective, model, code, condition, 0.0, draws[1], 6, Guidance(2.0), **settings)
    assert torch.equal(free.ids, sampled(objective, model, spec, condition, guidance=Guidance(2.0), **settings))


@every_spec
@pytest.mark.parametrize("in_order", [False, True], ids=["row_by_row", "random"])
@torch.no_grad()
def test_kept_tokens_stay_and_the_others_follow_from_the_mixture(spec, in_order):
    model, code, guidance = network(spec), Code(ids=ids_of(spec)), Guidance(2.0)
    draws = GivenDraws(
        {
            "choice": torch.rand(4, spec.tokens, spec.codebooks),
            "order": torch.rand(4, spec.tokens),
            "preserved": torch.rand(4, spec.tokens),
        }
    )
    kept = draws.given["preserved"] < 0.6
    order = draws.given["order"].argsort(dim=1) if in_order else None
    known = stack_ids(code.ids), kept
    expected = uncached(model, labels(), spec, draws, guidance, Choice(), order, known)
    settings = {"order": "random"} if in_order else {}
    found = generating.regenerate(ANNEALED, model, code, labels(), 0.6, draws, spec.tokens, guidance, **settings).ids
    assert torch.equal(found[kept], code.ids[kept]) and not torch.equal(found, code.ids)
    assert torch.equal(found, expected)


@every_spec
@pytest.mark.parametrize("in_order", [False, True], ids=["row_by_row", "random"])
@torch.no_grad()
def test_tokens_that_are_known_are_fed_and_come_first_in_a_random_order(spec, in_order):
    model, code, guidance = network(spec), Code(ids=ids_of(spec)), Guidance(2.0)
    draws = ImageDraws.from_seeds(list(range(4)))
    given = {"choice": draws.uniform("choice", (spec.tokens, spec.codebooks))}
    given |= {name: draws.uniform(name, (spec.tokens,)) for name in ("order", "preserved")}
    kept = torch.rand(4, spec.tokens) < torch.tensor([[0.2], [0.5], [0.8], [0.0]])
    order = (given["order"] - 2 * kept).argsort(dim=1) if in_order else None
    known = stack_ids(code.ids), kept | (given["preserved"] < 0.3)
    expected = uncached(model, labels(), spec, GivenDraws(given), guidance, Choice(), order, known)
    settings = {"order": "random"} if in_order else {}
    arguments = (ANNEALED, model, code, labels(), 0.3, GivenDraws(given), spec.tokens, guidance)
    found = generating.regenerate(*arguments, kept=kept, **settings).ids
    assert torch.equal(found[kept], code.ids[kept]) and torch.equal(found, expected)


def test_the_share_of_kept_tokens_is_right():
    chain, spec, count = Chain(), LatentSpec((10,), 1, vocab=4), 2000
    code = Code(ids=torch.full((count, 10), 9))  # an id that is never chosen
    draws = ImageDraws.from_seeds(list(range(count)))
    condition = Condition(labels=torch.zeros(count, dtype=torch.int64))
    chain.table = torch.randn(2, 10, 4)
    found = generating.regenerate(NextToken(), chain, code, condition, 0.7, draws, spec.tokens).ids
    assert abs((found == 9).float().mean() - 0.7) < 0.015


# losses


def test_an_untrained_network_costs_the_log_of_the_codebook():
    for spec in (SPEC, PAIRS):
        model = CausalTransformer([2, 3], 7, codebooks=spec.codebooks, target_positions=True, **SIZE)
        code, order = Code(ids=ids_of(spec)), torch.stack([torch.randperm(6) for _ in range(4)])
        assert NextToken().loss(model, code, labels())["next_token"].item() == pytest.approx(math.log(7))
        assert ANNEALED.loss(model, code, labels(), OrderRandomness(order))["random_order"].item() == pytest.approx(
            math.log(7)
        )


def test_the_loss_is_the_mean_over_ids_whatever_their_order():
    model, code = network(PAIRS), Code(ids=ids_of(PAIRS))
    logits = model(code.ids, labels()).log_softmax(-1)
    by_hand = -logits.gather(-1, code.ids[..., None]).mean()
    assert torch.allclose(NextToken().loss(model, code, labels())["next_token"], by_hand)
    rows = torch.arange(6).expand(4, -1)
    assert torch.allclose(
        ANNEALED.loss(model, code, labels(), OrderRandomness(rows))["random_order"], by_hand, atol=1e-5
    )
    order = torch.stack([torch.randperm(6) for _ in range(4)])
    ids = code.ids.gather(1, index(order, code.ids))
    by_hand = F.cross_entropy(model(ids, labels(), order).flatten(0, 2), ids.flatten())
    assert torch.allclose(ANNEALED.loss(model, code, labels(), OrderRandomness(order))["random_order"], by_hand)


@pytest.mark.parametrize("objective", [NextToken(), RandomOrder(10_000, 10_000)], ids=["next_token", "random_order"])
def test_training_learns_codes_that_can_be_known_and_samples_them(objective):
    """Every code is a run of consecutive ids from its label on, so that nothing is left to guess."""
    torch.manual_seed(0)
    model = CausalTransformer([2, 3], 7, 5, depth=2, width=32, heads=2, target_positions=True, residual_dropout=0.05)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    condition = Condition(labels=torch.arange(60) % 5)
    code = Code(ids=(condition.labels[:, None] + torch.arange(6)) % 7)
    for step in range(60):
        draws = objective.draw(code, StepDraws(0, step, slice(0, 60), 60))
        loss = sum(objective.loss(model, code, condition, draws).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    model.eval()
    found = sampled(objective, model, condition=condition[:5], seeds=range(5), temperature=0.0)
    assert torch.equal(found, code.ids[:5])


def test_orders_are_drawn_until_they_are_annealed_away():
    assert [ANNEALED.fraction_permuted(step) for step in (0, 10, 15, 20, 30, 99)] == [1, 1, 0.75, 0.5, 0, 0]
    assert [RandomOrder(5, 5).fraction_permuted(step) for step in (4, 5)] == [1, 0]
    code, rows = Code(ids=torch.zeros(4000, 6, dtype=torch.int64)), torch.arange(6)
    for step, share in ((0, 1.0), (20, 0.5), (30, 0.0)):
        order = ANNEALED.draw(code, StepDraws(0, step, slice(0, 4000), 4000)).order
        assert torch.equal(order.sort(dim=1).values, rows.expand(4000, -1))
        permuted = (order != rows).any(dim=1).float().mean()
        assert abs(permuted - share * (1 - 1 / 720)) < 0.03
    order = ANNEALED.draw(code, StepDraws(0, 0, slice(0, 4000), 4000)).order
    counts = torch.stack([torch.bincount(order[:, j], minlength=6) for j in range(6)]) / 4000
    assert (counts - 1 / 6).abs().max() < 0.03  # every place is as likely at every turn
    half = ANNEALED.draw(code[:2000], StepDraws(0, 0, slice(2000, 4000), 4000)).order
    assert torch.equal(half, order[2000:])  # whatever the number of processes


# settings


@every_objective
def test_settings_that_do_not_fit_are_one_line(objective, settings):
    wrong = [
        (5, {}, "6 tokens take 6 steps, not 5"),
        (6, {"temperature": -1.0}, "temperature"),
        (6, {"top_k": 8}, "top_k is 8"),
        (6, {"top_p": 0.0}, "top_p"),
    ]
    generating.check_sampler(objective, 6, SPEC, temperature=0.5, top_k=7, top_p=0.5, **settings)
    draws = ImageDraws.from_seeds([0])
    for steps, stated, message in wrong:
        with pytest.raises(ValueError, match=message) as error:
            generating.check_sampler(objective, steps, SPEC, **stated, **settings)
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match=message):
            generating.sample(objective, network(), labels(1), SPEC, draws, steps, **stated, **settings)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="target_positions=true"):
        ANNEALED.check_network(Arguments({"depth": 2, "target_positions": False}))
    ANNEALED.check_network(Arguments({"depth": 2, "target_positions": True}))
    with pytest.raises(ValueError, match="anneal_end is 2, and anneal_start is 3"):
        RandomOrder(3, 2)
    with pytest.raises(ValueError, match="preserve=2"):
        generating.regenerate(
            NextToken(), network(), Code(ids=ids_of(SPEC)), labels(), 2, ImageDraws.from_seeds([0]), 6
        )
    with pytest.raises(ValueError, match="unconditional"):
        sampled(NextToken(), network(num_classes=0), guidance=Guidance(2.0))
    with pytest.raises(ValueError, match="guidance_channels"):
        sampled(NextToken(), network(), condition=labels(), guidance=Guidance(2.0, channels=3))


@every_objective
@every_spec
def test_on_step_sees_every_token_and_may_change_it(objective, settings, spec):
    model, seen = network(spec), []
    final = sampled(objective, model, spec, labels(), on_step=lambda *told: seen.append(told), **settings)
    assert [step for step, _, _ in seen] == list(range(6))
    assert [u for _, u, _ in seen] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])
    assert torch.equal(seen[-1][2], final)

    changed = sampled(NextToken(), model, spec, labels(), on_step=lambda i, u, ids: first_plus_one(i, ids))
    plain = sampled(NextToken(), model, spec, labels())
    assert torch.equal(changed[:, 0], (plain[:, 0] + 1) % 7) and not torch.equal(changed[:, 1:], plain[:, 1:])
    with pytest.raises(ValueError, match="may change the token of its own step"):
        sampled(objective, model, spec, labels(), on_step=lambda i, u, ids: (ids + 1) % 7, **settings)


def first_plus_one(step: int, ids: Tensor) -> Tensor | None:
    if step:
        return None
    ids = ids.clone()
    ids[:, 0] = (ids[:, 0] + 1) % 7
    return ids


def test_an_objective_survives_its_folder(tmp_path):
    for objective in (NextToken(), ANNEALED):
        objective.save_pretrained(tmp_path)
        again = type(objective).from_pretrained(tmp_path)
        given = objective.config.keys() - {"_use_default_values"}  # a note of diffusers, which a folder has not
        assert {name: again.config[name] for name in given} == {name: objective.config[name] for name in given}


@torch.no_grad()
def test_bfloat16_samples_choose_in_float32():
    model, seen = network().bfloat16(), []

    class Watched(Choice):
        def __call__(self, logits, uniform):
            seen.append(logits.dtype)
            return super().__call__(logits, uniform)

    draws = ImageDraws.from_seeds([0, 1])
    request = SamplingRequest(model, labels(2), SPEC, draws, 6, Guidance(2.0))
    code = TokenSampler(Watched()).sample(request)
    assert code.ids.shape == (2, 6) and set(seen) == {torch.float32}
