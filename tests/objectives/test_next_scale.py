"""Next-scale prediction: what a level sees, equal sums with and without a memory, and how codes are made anew."""

from functools import cache

import pytest
import torch
from generating import check_sampler, sample
from torch import Tensor

from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import ImageDraws, StepDraws
from pipeline.networks.next_scale_transformer import NextScaleTransformer
from pipeline.nn.tokens import TokenHead
from pipeline.objectives.next_scale import NextScale
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.next_level import LevelChoice, spans, tokens_that_stay
from pipeline.samplers.original import Original
from pipeline.samplers.request import SamplingRequest

LEVELS = (1, 4, 9, 25)
LABELS = Condition(labels=torch.tensor([0, 3, 1]))
LAW = NextScale()
SHAPES = {"plain": {}, "codebooks": {"codebooks": 2}, "no_norm": {"query_key_norm": False, "shared_modulation": True}}
every_shape = pytest.mark.parametrize("shape", SHAPES)


@cache
def network(shape: str = "plain") -> NextScaleTransformer:
    torch.manual_seed(1)
    sizes = {"grid": [39], "levels": list(LEVELS), "dim": 5, "vocab": 13, "num_classes": 4}
    made = NextScaleTransformer(**sizes, depth=2, width=24, heads=3, **SHAPES[shape]).eval()
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn_like(parameter) * 0.3)
    made.offsets.normal_()
    return made


def spec(made: NextScaleTransformer | None = None) -> LatentSpec:
    config = (made or network()).config
    return LatentSpec((39,), config.dim, config.vocab, config.codebooks, LEVELS)


def draws(*seeds: int) -> ImageDraws:
    return ImageDraws.from_seeds(list(seeds or (1, 2, 3)))


def ids_of(made: NextScaleTransformer, batch: int = 3) -> Tensor:
    shape = (batch, 39, made.config.codebooks)
    ids = torch.randint(13, shape, generator=torch.Generator().manual_seed(2))
    return ids if made.config.codebooks > 1 else ids[..., 0]


@every_shape
@torch.no_grad()
def test_a_level_depends_on_the_levels_before_it_alone(shape):
    made = network(shape)
    ids = ids_of(made)
    before = made(ids, LABELS)[..., :1, :]  # later codebooks of a token also see the earlier ones
    for level, span in enumerate(spans(LEVELS)):
        other = ids.clone()
        other[:, span] = (other[:, span] + 1) % 13
        changed = (made(other, LABELS)[..., :1, :] - before).abs().amax(dim=(0, 2, 3))
        assert not changed[: span.stop].any(), level
        assert level == len(LEVELS) - 1 or changed[span.stop :].min() > 0


@every_shape
@torch.no_grad()
def test_a_memory_changes_nothing(shape, monkeypatch):
    """The logits that ids are chosen from, level by level, are those of all levels at once."""
    made, seen, choose = network(shape), [], TokenHead.choose
    monkeypatch.setattr(TokenHead, "choose", lambda head, h, how: seen.append(h) or choose(head, h, how))
    code = sample(LAW, made, LABELS, spec(made), draws(), 4)
    ids = code.ids if code.ids.ndim == 3 else code.ids[..., None]
    whole = made(code.ids, LABELS)
    torch.testing.assert_close(made.head(torch.cat(seen, dim=1), ids), whole, atol=2e-5, rtol=1e-4)
    assert [h.shape[1] for h in seen] == list(LEVELS), "one evaluation a level"


@torch.no_grad()
def test_inputs_in_training_are_those_in_sampling(monkeypatch):
    made, seen, embed = network(), [], NextScaleTransformer._embed
    monkeypatch.setattr(NextScaleTransformer, "_embed", lambda self, x: seen.append(x) or embed(self, x))
    code = sample(LAW, made, LABELS, spec(), draws(), 4)
    step_by_step = torch.cat(seen, dim=1)
    made(code.ids, LABELS)
    torch.testing.assert_close(seen[-1], step_by_step, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_guidance_rises_from_nothing_and_one_is_the_unguided_path():
    made = network()
    plain = sample(LAW, made, LABELS, spec(), draws(), 4).ids
    assert torch.equal(sample(LAW, made, LABELS, spec(), draws(), 4, Guidance(1.0, schedule="linear")).ids, plain)
    guided = sample(LAW, made, LABELS, spec(), draws(), 4, Guidance(6.0, schedule="linear")).ids
    assert torch.equal(guided[:, :1], plain[:, :1]) and not torch.equal(guided, plain)
    alone = sample(LAW, made, LABELS[1:2], spec(), draws(2), 4, Guidance(6.0, schedule="linear")).ids
    assert torch.equal(alone, guided[1:2])


@torch.no_grad()
def test_ids_follow_the_distribution_of_the_network():
    made = network()
    labels = Condition(labels=torch.zeros(600, dtype=torch.int64))
    ids = sample(LAW, made, labels, spec(), draws(*range(600)), 4).ids[:, 0]
    expected = made(torch.zeros(1, 39, dtype=torch.int64), labels[:1])[0, 0, 0].softmax(dim=-1)
    assert (ids.bincount(minlength=13) / 600 - expected).abs().max() < 0.06


@every_shape
@torch.no_grad()
def test_codes_made_anew_keep_the_coarse_tokens(shape):
    made = network(shape)
    code = Code(ids=ids_of(made))
    whole = SamplingRequest(made, LABELS, spec(made), draws(), 4)
    again = lambda preserve, kept=None: LAW.regenerate(whole_of(whole), Original(code, preserve, kept))  # noqa: E731
    assert torch.equal(again(1.0).ids, code.ids)
    free = LAW.sample(whole_of(whole))
    assert torch.equal(again(0.0).ids, free.ids)
    half = again(10 / 39 + 1e-6).ids  # two levels, and five of the third
    assert torch.equal(half[:, :5], code.ids[:, :5]) and not torch.equal(half[:, 14:], code.ids[:, 14:])
    stays = tokens_that_stay(Original(code, 10 / 39 + 1e-6), whole_of(whole))
    assert stays.sum(dim=1).tolist() == [10] * 3 and not torch.equal(stays[0], stays[1])
    kept = torch.arange(39).expand(3, -1) % 3 == 0
    assert torch.equal(again(0.0, kept).ids[kept], code.ids[kept])


def whole_of(request: SamplingRequest) -> SamplingRequest:
    """The same request with draws that begin anew."""
    return SamplingRequest(request.network, request.condition, request.spec, draws(), request.steps)


@every_shape
@torch.no_grad()
def test_smooth_codes_are_mixtures_that_sharpen_to_code_vectors(shape):
    made = network(shape)
    code = sample(LAW, made, LABELS, spec(made), draws(), 4, smooth=True)
    rows = made.code_vectors(code.ids if code.ids.ndim == 3 else code.ids[..., None])
    assert code.z.shape == (3, 39, 5) and code.z.isfinite().all()
    apart = [(code.z[:, span] - rows[:, span]).norm(dim=-1).mean().item() for span in spans(LEVELS)]
    assert apart[0] > 1e-3 and apart[-1] < min(apart[:2])
    kept = torch.ones(3, 39, dtype=torch.bool)
    kept[:, -1] = False
    given = Code(ids=ids_of(made))
    request = whole_of(SamplingRequest(made, LABELS, spec(made), draws(), 4))
    again = LAW.regenerate(request, Original(given, 0.0, kept), LevelChoice(smooth=True))
    vectors = made.code_vectors(given.ids if given.ids.ndim == 3 else given.ids[..., None])
    torch.testing.assert_close(again.z[kept], vectors[kept])


@torch.no_grad()
def test_a_callback_sees_every_level_and_may_change_its_own():
    made, seen = network(), []

    def change(step: int, rest: float, ids: Tensor) -> Tensor | None:
        seen.append((step, rest))
        assert not ids[:, sum(LEVELS[: step + 1]) :].any()
        if step == 1:
            ids[:, 1:5] = 7
            return ids

    code = sample(LAW, made, LABELS, spec(), draws(), 4, on_step=change)
    assert seen == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)] and (code.ids[:, 1:5] == 7).all()
    free = sample(LAW, made, LABELS, spec(), draws(), 4).ids
    assert torch.equal(code.ids[:, 0], free[:, 0]) and not torch.equal(code.ids[:, 5:], free[:, 5:])
    with pytest.raises(ValueError, match="tokens of its own level"):
        sample(LAW, made, LABELS, spec(), draws(), 4, on_step=lambda step, rest, ids: ids + (step == 1))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="4 levels take 4 steps, not 39"):
        check_sampler(LAW, 39, spec())
    with pytest.raises(ValueError, match="top_k is 14"):
        check_sampler(LAW, 4, spec(), top_k=14)
    with pytest.raises(ValueError, match="level after level, and this code has none"):
        LAW.check_codes(LatentSpec((4, 4), 5, 13))
    sizes = {"dim": 5, "vocab": 13, "num_classes": 4, "depth": 1, "width": 8, "heads": 2}
    for levels, message in (([], "levels has no entries"), ([1, 4, 8], r"levels of \[1, 4, 8\] tokens")):
        with pytest.raises(ValueError, match=message):
            NextScaleTransformer(grid=[13], levels=levels, **sizes)
    with pytest.raises(ValueError, match="does not fit levels"):
        network()(torch.zeros(1, 38, dtype=torch.int64))


def test_training_lowers_the_loss_and_the_loss_is_of_all_tokens():
    torch.manual_seed(0)
    made = NextScaleTransformer([14], [1, 4, 9], 4, 6, 2, depth=2, width=32, heads=4, drop_path=0.1).train()
    ids = torch.randint(6, (2, 14), generator=torch.Generator().manual_seed(1))
    code, condition = Code(ids=ids), Condition(labels=torch.tensor([0, 1]))
    logits = made(ids, condition)[:, :, 0]
    expected = -logits.log_softmax(dim=-1).gather(-1, ids[..., None]).mean()
    torch.testing.assert_close(LAW.loss(made, code, condition)["next_scale"], expected)
    optimizer, losses = torch.optim.AdamW(made.parameters(), 1e-2), []
    for step in range(40):
        loss = LAW.loss(made, code, condition, LAW.draw(code, StepDraws(0, step, slice(0, 2), 2)))["next_scale"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
    again = regenerate_all(made.eval(), code, condition)
    assert torch.equal(again, ids), "both images are known by heart"


def regenerate_all(made: NextScaleTransformer, code: Code, condition: Condition) -> Tensor:
    request = SamplingRequest(made, condition, LatentSpec((14,), 4, 6, levels=(1, 4, 9)), draws(1, 2), 3)
    return LAW.regenerate(request, Original(code, 0.0), LevelChoice(temperature=0.0)).ids
