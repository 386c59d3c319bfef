"""Masked token modelling: the mask rates, the loss in closed form, and sampling step by step."""

import math

import generating
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import Tensor, nn

from pipeline import LatentPipeline
from pipeline.code import Code, Condition, LatentSpec, stack_ids
from pipeline.draws import GivenDraws, ImageDraws, StepDraws
from pipeline.networks.bidirectional_transformer import BidirectionalTransformer
from pipeline.objectives.masked_token import MaskedToken, MaskRandomness
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.original import Original
from pipeline.samplers.request import SamplingRequest
from pipeline.samplers.unmasking import GumbelChoice, Unmasking, halton_order, mask_rate, masked_counts
from pipeline.sampling.many_images import counted
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

SCHEDULES = ["arccos", "cosine", "linear"]
SPEC = LatentSpec(grid=(3, 4), dim=0, vocab=7)
DOUBLE = LatentSpec(grid=(3, 4), dim=0, vocab=7, codebooks=2)
SETTINGS = {
    "maskgit": {"schedule": "cosine"},
    "titok": {"temperature": 3.0, "noise": 3.0, "anneal": True, "confidence": "logit"},
    "softened": {"soften": True, "noise": 0.0, "temperature": 0.0},
    "halton": {"order": "halton", "top_k": 5},
    "random": {"order": "random", "schedule": "linear", "top_p": 0.8},
}


def network(spec: LatentSpec = SPEC, num_classes: int = 3, **arguments) -> BidirectionalTransformer:
    """Small, with every weight random, and nothing that hides one."""
    derived = {"grid": list(spec.grid), "vocab": spec.vocab, "codebooks": spec.codebooks, "num_classes": num_classes}
    model = BidirectionalTransformer(**derived, **({"depth": 2, "width": 16, "heads": 2} | arguments))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def labels(count: int) -> Condition:
    return Condition(labels=torch.arange(count) % 3)


class Watched(nn.Module):
    """A network, and what it was asked: the ids and masks of every call."""

    def __init__(self, inner: BidirectionalTransformer):
        super().__init__()
        self.inner, self.config, self.asked = inner, inner.config, []

    def forward(self, ids, masked, condition=None, choose=None, dropout=None):
        self.asked.append((ids.clone(), masked.clone()))
        return self.inner(ids, masked, condition, choose=choose, dropout=dropout)

    def null(self, condition):
        return self.inner.null(condition)


class Fixed(nn.Module):
    """The same logits [B, N, codebooks, vocab] whatever it is asked."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, ids, masked, condition=None, choose=None, dropout=None):
        if choose is None:
            return self.logits
        return torch.stack([choose(self.logits[..., k, :], k) for k in range(self.logits.shape[2])], dim=-1)


# how many, and in what order


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_mask_rates_fall_from_all_to_none_and_are_concave(schedule):
    rates = mask_rate(schedule, torch.linspace(0, 1, 101, dtype=torch.float64))
    assert abs(rates[0] - 1) < 1e-12 and abs(rates[-1]) < 1e-12
    assert (rates.diff() < 0).all() and (rates.diff().diff() < 1e-9).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_settles_one_token_at_least(schedule):
    for tokens in (1, 2, 7, 10, 32, 100, 256):
        for steps in {1, 2, 3, 8, tokens // 2, tokens - 1, tokens} & set(range(1, tokens + 1)):
            counts = [tokens, *masked_counts(schedule, tokens, steps)]
            assert len(counts) == steps + 1 and counts[-1] == 0
            assert all(before > after for before, after in zip(counts, counts[1:]))
        more = [tokens, *masked_counts(schedule, tokens, tokens + 5)]
        assert len(more) == tokens + 6 and more == sorted(more, reverse=True) and more[-1] == 0


def test_counts_are_the_published_ones():
    assert masked_counts("cosine", 256, 8) == [int(256 * math.cos(math.pi / 2 * s / 8)) for s in range(1, 8)] + [0]
    assert masked_counts("arccos", 32, 8) == [int(32 * math.acos(s / 8) / math.pi * 2) for s in range(1, 8)] + [0]
    assert masked_counts("linear", 10, 10) == list(range(9, -1, -1))


@pytest.mark.parametrize("grid", [(1,), (7,), (32,), (3, 4), (16, 16), (24, 24), (4, 6, 5)])
def test_halton_order_meets_every_token_once(grid):
    order = halton_order(grid)
    assert torch.equal(order.sort().values, torch.arange(math.prod(grid)))


def test_halton_order_is_the_sequence():
    assert halton_order((8,)).tolist() == [4, 2, 6, 1, 5, 3, 7, 0]  # 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, 7/8, then 1/16
    points = [(1 / 2, 1 / 3), (1 / 4, 2 / 3), (3 / 4, 1 / 9), (1 / 8, 4 / 9), (5 / 8, 7 / 9), (3 / 8, 2 / 9)]
    assert halton_order((16, 16))[:6].tolist() == [int(16 * x) * 16 + int(16 * y) for x, y in points]


def test_halton_order_is_spread_evenly():
    def unevenness(order: Tensor) -> float:
        """The largest gap between a rectangle's share of the first n tokens and of the grid, from the corner on."""
        gaps = []
        for n in (16, 32, 64, 128):
            table = torch.zeros(16, 16).index_put((order[:n] // 16, order[:n] % 16), torch.ones(n))
            area = torch.outer(torch.arange(1, 17), torch.arange(1, 17)) / 256
            gaps.append((table.cumsum(0).cumsum(1) / n - area).abs().max().item())
        return sum(gaps)

    chance = [unevenness(torch.randperm(256)) for _ in range(20)]
    assert unevenness(halton_order((16, 16))) < 0.8 * min(chance)


# training


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_of_masking_follows_the_schedule(schedule):
    objective, code = MaskedToken(schedule=schedule), Code(ids=torch.zeros(4000, 200, dtype=torch.int64))
    masked = objective.draw(code, StepDraws(0, 0, slice(0, 4000), 4000)).masked
    rates = masked.float().mean(dim=1)
    expected = (200 * mask_rate(schedule, torch.rand(4000))).round() / 200
    assert kstest(rates, expected).pvalue > 1e-3 and rates.min() >= 1 / 200
    places = masked.float().mean(dim=0)
    assert (places - rates.mean()).abs().max() < 0.05  # no place is preferred


def test_masks_are_rates_and_ranks():
    objective, code = (
        MaskedToken(schedule="linear", unmasked_weight=0.25),
        Code(ids=torch.zeros(3, 4, dtype=torch.int64)),
    )
    places = torch.tensor([[0.9, 0.1, 0.5, 0.3]]).expand(3, 4)
    draws = objective.draw(code, GivenDraws({"mask_rate": torch.tensor([0.0, 0.4, 0.999]), "mask_places": places}))
    assert draws.masked.int().tolist() == [[1, 1, 1, 1], [0, 1, 0, 1], [0, 1, 0, 0]]
    assert draws.weight == pytest.approx((4 + 2.5 + 1.75) / 3)


@pytest.mark.parametrize("smoothing, weight", [(0.0, 0.0), (0.1, 0.1), (0.3, 1.0)])
def test_the_loss_is_a_weighted_smoothed_cross_entropy(smoothing, weight):
    logits, ids = torch.randn(2, 3, 2, 5, dtype=torch.float64), torch.randint(5, (2, 3, 2))
    masked = torch.tensor([[True, False, True], [False, False, True]])
    shares = logits.log_softmax(dim=-1)
    truth = (1 - smoothing) * F.one_hot(ids, 5) + smoothing / 5
    each = -(truth * shares).sum(dim=-1).mean(dim=-1)
    weights = torch.where(masked, 1.0, weight)
    objective = MaskedToken(label_smoothing=smoothing, unmasked_weight=weight)
    found = objective.loss(Fixed(logits), Code(ids=ids), None, MaskRandomness(masked))
    assert tuple(found) == objective.terms
    torch.testing.assert_close(found["masked_token"], ((weights * each).sum() / weights.sum()).float())


def test_the_loss_does_not_depend_on_how_the_batch_is_divided():
    objective, model = MaskedToken(), network(dropout=0.2, attention_dropout=0.1)
    code, condition = Code(ids=torch.randint(7, (6, 12))), labels(6)

    def loss(rows: slice) -> Tensor:
        draws = StepDraws(3, 5, rows, 6)
        return objective.loss(model, code[rows], condition[rows], objective.draw(code[rows], draws))["masked_token"]

    parts = torch.stack([loss(slice(0, 2)), loss(slice(2, 4)), loss(slice(4, 6))])
    torch.testing.assert_close(parts.mean(), loss(slice(0, 6)))
    masked = objective.draw(code, StepDraws(3, 5, slice(0, 6), 6)).masked
    alone = objective.loss(model, code, condition, MaskRandomness(masked, dropout=StepDraws(3, 5, slice(0, 6), 6)))
    torch.testing.assert_close(
        alone["masked_token"], loss(slice(0, 6))
    )  # the whole batch needs no weight from elsewhere


def test_a_network_learns_a_code_and_samples_it():
    """Two classes, each with its own code of two codebooks: what is learned is what is sampled, in any order."""
    torch.manual_seed(0)
    spec = LatentSpec(grid=(2, 3), dim=0, vocab=8, codebooks=2)
    model = BidirectionalTransformer([2, 3], 8, 2, depth=2, width=32, heads=2, codebooks=2, condition_drop=0.0)
    codes, wanted = torch.randint(8, (2, 6, 2)), torch.arange(32) % 2
    objective, code = MaskedToken(label_smoothing=0.0), Code(ids=codes[wanted])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for step in range(80):
        drawn = objective.draw(code, StepDraws(0, step, slice(0, 32), 32))
        loss = objective.loss(model, code, Condition(labels=wanted), drawn)["masked_token"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    for settings in SETTINGS.values():
        for steps in (1, 3):
            seeds = ImageDraws.from_seeds(list(range(8)))
            ids = generating.sample(objective, model.eval(), labels_of(wanted[:8]), spec, seeds, steps, **settings).ids
            assert (ids == codes[wanted[:8]]).float().mean() > 0.9


def labels_of(wanted: Tensor) -> Condition:
    return Condition(labels=wanted)


# sampling


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("spec", [SPEC, DOUBLE], ids=["one", "two"])
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_a_code_is_complete_and_in_range(settings, spec, steps):
    model = Watched(network(spec))
    seeds = ImageDraws.from_seeds([1, 2, 3])
    code = generating.sample(MaskedToken(), model, labels(3), spec, seeds, steps, Guidance(3.0), **settings)
    assert code.z is None and code.ids.dtype == torch.int64
    assert code.ids.shape == ((3, 12) if spec.codebooks == 1 else (3, 12, 2))
    assert code.ids.min() >= 0 and code.ids.max() < 7
    counts = [12, *masked_counts(settings.get("schedule") or "arccos", 12, steps)]
    assert len(model.asked) == steps
    for (_, masked), left in zip(model.asked, counts):
        assert (masked.sum(dim=1) == left).all()
    final = stack_ids(code.ids).repeat(2, 1, 1)
    for ids, masked in model.asked:  # what is settled stays
        assert torch.equal(ids[~masked], final[: len(ids)][~masked])


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_batch_is_its_images_one_by_one(settings):
    model, objective, spec = network(DOUBLE), MaskedToken(), DOUBLE
    guidance = Guidance(2.5, schedule="linear")

    def ids(seeds: list[int], wanted: Condition) -> Tensor:
        return generating.sample(
            objective, model, wanted, spec, ImageDraws.from_seeds(seeds), 4, guidance, **settings
        ).ids

    together = ids([4, 5, 6], labels(3))
    assert torch.equal(together, torch.cat([ids([4 + i], labels(3)[i : i + 1]) for i in range(3)]))
    assert torch.equal(together, ids([4, 5, 6], labels(3)))
    assert settings.get("temperature") == 0 or not torch.equal(together, ids([7, 8, 9], labels(3)))


def test_a_scale_of_1_is_the_unguided_path():
    model, objective = Watched(network(body="uvit", depth=3)), MaskedToken()

    def ids(guidance: Guidance) -> Tensor:
        return generating.sample(objective, model, labels(3), SPEC, ImageDraws.from_seeds([1, 2, 3]), 4, guidance).ids

    plain, one = ids(Guidance()), ids(Guidance(1.0, schedule="linear"))
    linear, late = ids(Guidance(9.0, schedule="linear")), ids(Guidance(9.0, interval=(0.0, 0.5)))
    assert torch.equal(plain, one) and not torch.equal(plain, linear) and not torch.equal(late, linear)
    sizes = [len(masked) for _, masked in model.asked]
    assert sizes == [3] * 8 + [3, 6, 6, 6] + [3, 3, 6, 6]  # no null pass where the scale is 1


def test_guidance_moves_away_from_the_null_label():
    likes = torch.zeros(2, 12, 1, 7)
    likes[0, :, :, 2], likes[1, :, :, 2], likes[0, :, :, 5] = 1.0, 2.0, 0.9  # null likes 2 even better
    network = Fixed(likes)
    network.null = lambda condition: condition

    def ids(guidance: Guidance) -> Tensor:
        network.logits = likes if guidance.scale != 1 else likes[:1]
        draws = ImageDraws.from_seeds([0])
        return generating.sample(MaskedToken(), network, labels(1), SPEC, draws, 3, guidance, temperature=0.0).ids

    assert (ids(Guidance()) == 2).all() and (ids(Guidance(3.0)) == 5).all()


def test_the_surest_tokens_are_settled_first_and_noise_loosens_that():
    logits = torch.zeros(1, 12, 1, 7)
    sureness = torch.randperm(12)
    logits[0, torch.arange(12), 0, 3] = 1.0 + sureness

    def order(**settings) -> list[int]:
        model, settled = Fixed(logits), []
        generating.sample(MaskedToken(), 
            model, None, SPEC, ImageDraws.from_seeds([0]), 12, Guidance(),
            lambda step, rest, ids: settled.append(ids[0] != 7), temperature=0.0, **settings,
        )  # fmt: skip
        assert all((after | before).equal(after) for before, after in zip(settled, settled[1:]))
        return torch.stack(settled).sum(dim=0).tolist()  # steps since it was settled

    surest = [int(s) + 1 for s in sureness]
    assert order(noise=0.0, confidence="logit") == surest and order(noise=0.0) == surest
    assert order(noise=100.0) != surest
    halton = halton_order((3, 4)).argsort()
    assert order(order="halton") == [12 - int(place) for place in halton]


def test_noise_falls_to_nothing():
    uniform = torch.rand(2, 12)
    late = [Unmasking(noise=4.5).lateness(torch.zeros(2, 12), uniform, rest, (3, 4)) for rest in (1.0, 0.25, 0.0)]
    torch.testing.assert_close(late[0], -4.5 * torch.log(-torch.log(uniform)))
    torch.testing.assert_close(late[1], late[0] / 4)
    assert not late[2].any()


def test_ids_follow_the_networks_distribution():
    shares = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0, 0.0, 0.0])
    model = Fixed(shares.log().expand(300, 12, 1, 7))
    for steps, order in ((1, "confidence"), (3, "halton"), (3, "random")):  # confidence prefers likely ids, over steps
        ids = generating.sample(
            MaskedToken(), model, None, SPEC, ImageDraws.from_seeds(list(range(300))), steps, order=order
        ).ids
        found = ids.flatten().bincount(minlength=7) / ids.numel()
        assert (found - shares).abs().max() < 0.03
    draws = ImageDraws.from_seeds(list(range(300)))
    again = generating.sample(MaskedToken(), model, None, SPEC, draws, 3, noise=0.0).ids  # unlikely ids are chosen anew
    assert (again == 0).float().mean() > 0.53
    annealed = {"temperature": 1.0, "anneal": True}
    ids = generating.sample(
        MaskedToken(), model, None, SPEC, ImageDraws.from_seeds(list(range(300))), 1, **annealed
    ).ids
    assert (ids == 0).all()  # a temperature of 0 at the last step, which is the only one


def test_the_annealed_choice_is_the_published_one_in_distribution():
    """The largest of logits and Gumbel noise of temperature t is a choice at temperature t."""
    logits, temperature = torch.randn(6), 1.7
    gumbel = -torch.log(-torch.log(torch.rand(40_000, 6)))
    published = (logits + temperature * gumbel).argmax(dim=-1).bincount(minlength=6) / 40_000
    settings = Unmasking(temperature=2 * temperature, anneal=True)
    choose = settings.chooser(rest=0.5, scale=1.0, uniform=torch.rand(1, 40_000, 1))
    ours = choose(logits.expand(1, 40_000, 6), 0).flatten().bincount(minlength=6) / 40_000
    assert (ours - published).abs().max() < 0.015


def test_an_unconditional_network_samples_and_has_nothing_to_guide():
    model = network(num_classes=0)
    ids = generating.sample(MaskedToken(), model, None, SPEC, ImageDraws.from_seeds([1, 2]), 4).ids
    assert ids.shape == (2, 12) and ids.max() < 7
    with pytest.raises(ValueError, match="nothing to guide"):
        generating.sample(MaskedToken(), model, None, SPEC, ImageDraws.from_seeds([1]), 4, Guidance(2.0))
    with pytest.raises(ValueError, match="for continuous codes"):
        generating.sample(
            MaskedToken(), network(), labels(1), SPEC, ImageDraws.from_seeds([1]), 4, Guidance(2.0, channels=3)
        )


def test_a_watcher_sees_every_step_and_may_change_the_state():
    model, seen = network(), []

    def watch(step: int, rest: float, ids: Tensor) -> None:
        seen.append((step, rest, int((ids == 7).sum(dim=1)[0])))

    plain = generating.sample(MaskedToken(), model, labels(2), SPEC, ImageDraws.from_seeds([1, 2]), 4, on_step=watch)
    assert seen == [(i, 1 - (i + 1) / 4, left) for i, left in enumerate(masked_counts("arccos", 12, 4))]

    def settle(step: int, rest: float, ids: Tensor) -> Tensor | None:
        return torch.where(torch.arange(12) == 0, 6, ids) if step < 3 else None

    ids = generating.sample(MaskedToken(), model, labels(2), SPEC, ImageDraws.from_seeds([1, 2]), 4, on_step=settle).ids
    assert (ids[:, 0] == 6).all() and ids.max() < 7 and not torch.equal(ids, plain.ids)
    given = torch.arange(24).view(2, 12) % 7

    def fill(step: int, rest: float, ids: Tensor) -> Tensor | None:
        return torch.where(torch.arange(12) < 10, given, 7) if step == 0 else None

    ids = generating.sample(MaskedToken(), model, labels(2), SPEC, ImageDraws.from_seeds([1, 2]), 4, on_step=fill).ids
    assert torch.equal(
        ids[:, :10], given[:, :10]
    )  # what is settled is not masked again, however many the step may mask


@pytest.mark.parametrize("spec", [SPEC, DOUBLE], ids=["one", "two"])
def test_regenerate_keeps_all_or_nothing_at_its_ends(spec):
    model, objective = network(spec), MaskedToken()
    shape = (16, 12) if spec.codebooks == 1 else (16, 12, 2)
    code, condition, seeds = Code(ids=torch.randint(7, shape)), labels(16), list(range(16))

    def again(preserve: float, steps: int = 6) -> Tensor:
        draws = ImageDraws.from_seeds(seeds)
        return generating.regenerate(
            objective, model, code, condition, preserve, draws, steps, Guidance(2.0), noise=1.0
        ).ids

    free = generating.sample(
        objective, model, condition, spec, ImageDraws.from_seeds(seeds), 6, Guidance(2.0), noise=1.0
    )
    assert torch.equal(again(1.0), code.ids) and torch.equal(again(0.0), free.ids)
    watched = Watched(model)
    ids = generating.regenerate(objective, watched, code, condition, 0.75, ImageDraws.from_seeds(seeds), 8).ids
    assert len(watched.asked) == 3 and (watched.asked[0][1].sum(dim=1) == 3).all()  # 3 of 12, so 3 of the 8 steps
    kept = ~watched.asked[0][1]
    assert torch.equal(ids[kept], code.ids[kept]) and len(kept.unique(dim=0)) > 8 and ids.max() < 7
    changed = [(stack_ids(again(p)) != stack_ids(code.ids)).any(dim=-1).float().mean() for p in (0.2, 0.5, 0.9)]
    assert changed == sorted(changed, reverse=True) and changed[-1] > 0
    with pytest.raises(ValueError, match="preserve"):
        again(1.5)


@pytest.mark.parametrize(
    "steps, settings, message",
    [
        (13, {}, "13 sampling steps for 12 tokens"),
        (0, {}, "0 sampling steps"),
        (4, {"temperature": -1.0}, "temperature"),
        (4, {"top_k": 8}, "top_k"),
        (4, {"noise": -1.0}, "noise"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(steps, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        generating.check_sampler(MaskedToken(), steps, SPEC, **settings)
    assert "\n" not in str(error.value)


def test_a_pipeline_samples_and_survives_its_folder(tmp_path):
    bottleneck = {"kind": "vector_quantize", "vocab": 7, "dim": 4}
    tokenizer = ConvAutoencoder(8, bottleneck, width=4, multipliers=[1, 2], blocks=1, groups=2).eval()
    spec, names = tokenizer.spec, dict(enumerate("abc"))
    pipe = LatentPipeline(tokenizer, network(spec), MaskedToken(), id2label=names)

    def images(pipe: LatentPipeline) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        settings = {"guidance_scale": 3.0, "guidance_schedule": "linear", "order": "halton"}
        return pipe([0, 2], generator=generators, output_type="pt", **settings).images

    with counted(pipe.network) as calls:
        first = images(pipe)
    assert first.shape == (2, 3, 8, 8) and calls.total() == pipe.steps == 8
    pipe.save_pretrained(tmp_path)
    assert torch.equal(images(LatentPipeline.from_pretrained(tmp_path)), first)
    with pytest.raises(ValueError, match="17 sampling steps for 16 tokens"):
        pipe(0, num_inference_steps=17)


def test_defaults_fit_and_survive_their_folder(tmp_path):
    tiny = LatentSpec(grid=(2, 2), dim=0, vocab=3)
    assert MaskedToken().default_steps(tiny) == 4 and MaskedToken().default_steps(SPEC) == 8
    for spec in (tiny, SPEC):
        generating.check_sampler(MaskedToken(), MaskedToken().default_steps(spec), spec)
    objective = MaskedToken(schedule="cosine", unmasked_weight=0.0)
    objective.save_pretrained(tmp_path)
    again = MaskedToken.from_pretrained(tmp_path)
    assert (again.config.schedule, again.config.unmasked_weight) == ("cosine", 0.0)
    for wrong in ({"label_smoothing": 1.0}, {"unmasked_weight": -1.0}):
        with pytest.raises(ValueError):
            MaskedToken(**wrong)


@pytest.mark.parametrize("spec", [SPEC, DOUBLE], ids=["one", "two"])
def test_kept_tokens_stay_and_each_image_fills_in_its_own(spec):
    model, objective, condition = network(spec), MaskedToken(), labels(3)
    code = Code(ids=torch.randint(7, (3, 12) if spec.codebooks == 1 else (3, 12, 2)))
    kept = torch.arange(12) >= torch.tensor([[2], [7], [12]])  # 2, 7 and 12 tokens are made anew
    watched = Watched(model)

    def made(rows: list[int], network: nn.Module = model, preserve: float = 0.0) -> Tensor:
        draws, given = ImageDraws.from_seeds([4 + row for row in rows]), Code(ids=code.ids[rows])
        guidance = Guidance(2.0)
        return generating.regenerate(
            objective, network, given, condition[rows], preserve, draws, 6, guidance, kept=kept[rows]
        ).ids

    together = made([0, 1, 2], watched)
    assert torch.equal(together[kept], code.ids[kept]) and together.max() < 7
    assert torch.equal(torch.cat([made([row]) for row in range(3)]), together)
    for step, (_, masked) in enumerate(watched.asked):
        expected = [[count, *masked_counts("arccos", count, 6)][step] for count in (2, 7, 12)]
        assert masked.sum(dim=1).tolist() == 2 * expected
    some = made([0, 1, 2], preserve=0.5)
    assert torch.equal(torch.cat([made([row], preserve=0.5) for row in range(3)]), some)


def test_a_step_that_settles_nothing_asks_nothing():
    watched, code = Watched(network()), Code(ids=torch.randint(7, (2, 12)))
    kept = torch.arange(12).expand(2, -1) >= 2
    seen = []
    draws = ImageDraws.from_seeds([1, 2])
    request = SamplingRequest(watched, labels(2), SPEC, draws, 8, on_step=lambda *step: seen.append(step))
    MaskedToken().regenerate(request, Original(code, 0.0, kept))
    assert len(watched.asked) == 2 and [step for step, *_ in seen] == list(range(8))
    assert not (seen[-1][2] == SPEC.vocab).any()


def test_gumbel_noise_and_inversion_choose_by_the_same_law():
    """The largest of logits and Gumbel noise of temperature t is a choice at temperature t."""
    generator = torch.Generator().manual_seed(0)
    logits, temperature = torch.tensor([1.0, 0.0, -1.0, 2.0]), 0.7
    chosen = GumbelChoice(temperature)(logits.expand(20_000, -1), torch.rand(20_000, 4, generator=generator))
    shares = torch.bincount(chosen, minlength=4) / 20_000
    torch.testing.assert_close(shares, (logits / temperature).softmax(dim=-1), atol=0.015, rtol=0)
    assert torch.equal(GumbelChoice(0.0)(logits, torch.rand(4)), torch.tensor(3))


def test_drawing_by_gumbel_noise_takes_all_ids():
    with pytest.raises(ValueError, match="draw=gumbel leaves all ids in"):
        Unmasking(draw="gumbel", top_k=2).validate(2, LatentSpec((4,), 1, vocab=8))
