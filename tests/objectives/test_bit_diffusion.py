"""Diffusion of bits: the loss in closed form, sampling by a network that knows the data, and codes made anew."""

import math

import generating
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from pipeline.code import Code, LatentSpec, stack_ids
from pipeline.draws import GivenDraws, ImageDraws, StepDraws
from pipeline.nn.bits import ids_to_bits
from pipeline.objectives.bit_diffusion import BitDiffusion, FlipRandomness
from pipeline.samplers.bit_flipping import BitFlipping, noised

SPEC = LatentSpec((6,), dim=1, vocab=4, codebooks=3)
PROTOCOLS = ("renoise", "posterior")


class Oracle(nn.Module):
    """It is certain of the data [N, codebooks], and records what it was asked; `doubt` divides its logits."""

    def __init__(self, data: Tensor, vocab: int = 4, doubt: float = 1.0):
        super().__init__()
        self.bits, self.doubt, self.asked = ids_to_bits(data, vocab), doubt, []
        self.config = type("Config", (), {"vocab": vocab, "grid": [len(data)]})()

    def forward(self, ids, time, condition=None, dropout=None):
        self.asked.append((ids.clone(), time.clone()))
        wrong = ids_to_bits(ids, self.config.vocab) != self.bits
        return torch.where(wrong, 20.0, -20.0) / self.doubt

    def null(self, condition):
        return condition


def data(seed: int = 0) -> Tensor:
    return torch.randint(4, (6, 3), generator=torch.Generator().manual_seed(seed))


def draws(count: int = 2) -> ImageDraws:
    return ImageDraws.from_seeds(list(range(count)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_network_that_knows_the_data_makes_it(protocol, steps):
    oracle = Oracle(data())
    made = generating.sample(BitDiffusion(), oracle, None, SPEC, draws(), steps, protocol=protocol).ids
    assert torch.equal(made, data().expand(2, -1, -1)) and len(oracle.asked) == steps
    assert [float(time[0]) for _, time in oracle.asked] == pytest.approx([1 - i / steps for i in range(steps)])


def test_levels_fall_by_the_power():
    assert BitFlipping(power=2.0).levels(4) == [1.0, 0.5625, 0.25, 0.0625, 0.0]
    assert BitFlipping().levels(2, 0.5) == [0.5, 0.25, 0.0]


def test_the_posterior_is_bayes_rule():
    """Of a chain data -> next level -> level, over the values of the bit at the next level."""
    level, next_level, chance = 0.8, 0.3, 0.7
    kept = 1 - (level - next_level)  # the law that the released sampler takes for this step
    for state in (0, 1):
        at_next = {1: chance * (1 - next_level) + next_level / 2}
        at_next[0] = 1 - at_next[1]
        leads = {x: kept * (x == state) + (1 - kept) / 2 for x in (0, 1)}
        expected = at_next[1] * leads[1] / sum(at_next[x] * leads[x] for x in (0, 1))
        ours = BitFlipping("posterior").chance(torch.tensor(chance), torch.tensor(float(state)), level, next_level)
        assert float(ours) == pytest.approx(expected)


def test_noise_turns_bits_into_fair_coins():
    law, bits = BitDiffusion(), torch.ones(4, 500, 8, dtype=torch.int64)
    time = torch.tensor([0.0, 0.3, 0.7, 1.0])
    ones = law.add_noise(bits, time, torch.rand(bits.shape, generator=torch.Generator().manual_seed(0)))
    for level, row in zip(time.tolist(), ones):
        assert binomtest(int(row.sum()), row.numel(), 1 - level / 2).pvalue > 1e-4
    assert torch.equal(noised(torch.tensor([0.0, 1.0]), 0.4), torch.tensor([0.2, 0.8]))


def test_the_loss_is_that_of_what_is_wrong():
    """A network certain of the data has none; one that says nothing has log 2 a bit."""
    code = Code(ids=data().expand(3, -1, -1))
    randomness = BitDiffusion().draw(code, StepDraws(0, 0, slice(0, 3), 3))
    assert BitDiffusion().loss(Oracle(data()), code, None, randomness)["flip"] < 1e-6
    nothing = BitDiffusion().loss(Oracle(data(), doubt=math.inf), code, None, randomness)["flip"]
    assert float(nothing) == pytest.approx(math.log(2))
    oracle = Oracle(data())
    noise = torch.full((3, 6, 6), 0.6)
    given = FlipRandomness(torch.tensor([0.0, 0.5, 1.0]), GivenDraws({"noise": noise}))
    BitDiffusion().loss(oracle, code, None, given)
    asked, _ = oracle.asked[0]
    assert torch.equal(asked[0], data()) and torch.equal(asked[1], data()) and not asked[2].any()


@pytest.mark.parametrize("time, mean", [("uniform", 0.5), ("logit_normal", 0.5)])
def test_levels_are_drawn_by_their_law(time, mean):
    code = Code(ids=data().expand(2000, -1, -1))
    drawn = BitDiffusion(time=time).draw(code, StepDraws(0, 0, slice(0, 2000), 2000)).time
    spread = {"uniform": 1 / 12**0.5, "logit_normal": 0.208}[time]
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.02) and float(drawn.std()) == pytest.approx(
        spread, abs=0.02
    )


def test_preserve_is_how_far_the_code_is_noised():
    original, oracle = Code(ids=data(1).expand(2, -1, -1)), Oracle(data())
    same = generating.regenerate(BitDiffusion(), oracle, original, None, 1.0, draws(), 4).ids
    assert torch.equal(same, original.ids) and not oracle.asked
    generating.regenerate(BitDiffusion(), oracle, original, None, 0.75, draws(), 4)
    ids, time = oracle.asked[0]
    assert float(time[0]) == 0.25
    wrong = (ids_to_bits(ids, 4) != ids_to_bits(original.ids, 4)).float().mean()
    assert 0.02 < wrong < 0.25
    free = generating.regenerate(BitDiffusion(), Oracle(data(), doubt=30.0), original, None, 0.0, draws(), 4).ids
    sampled = generating.sample(BitDiffusion(), Oracle(data(), doubt=30.0), None, SPEC, draws(), 4).ids
    assert torch.equal(free, sampled)


def test_kept_tokens_stay_and_are_seen_at_the_level_of_the_step():
    original, oracle = Code(ids=data(1).expand(2, -1, -1)), Oracle(data(), doubt=30.0)
    kept = torch.arange(6).expand(2, -1) < 4
    made = generating.regenerate(BitDiffusion(), oracle, original, None, 0.0, draws(), 5, kept=kept).ids
    assert torch.equal(made[kept], original.ids[kept])
    wrong = [(ids_to_bits(ids, 4) != ids_to_bits(original.ids, 4))[kept].float().mean() for ids, _ in oracle.asked]
    assert all(a >= b for a, b in zip(wrong, wrong[1:])) and wrong[0] > 0.25 and wrong[-1] < 0.2


def test_each_image_has_its_own_draws():
    oracle = Oracle(data(), doubt=30.0)
    generating.sample(BitDiffusion(), oracle, None, SPEC, draws(), 4)
    generating.sample(BitDiffusion(), oracle, None, SPEC, ImageDraws.from_seeds([1]), 4)
    both, alone = ([ids for ids, _ in oracle.asked[first : first + 4]] for first in (0, 4))
    assert all(torch.equal(a[0], b[1]) and not torch.equal(b[0], b[1]) for a, b in zip(alone, both))


def test_a_callback_sees_every_state_and_may_change_it():
    seen = []

    def on_step(step: int, level: float, ids: Tensor) -> Tensor | None:
        seen.append((step, level, ids.clone()))
        return torch.zeros_like(ids) if step == 3 else None

    made = generating.sample(BitDiffusion(), Oracle(data()), None, SPEC, draws(), 4, on_step=on_step).ids
    assert [step for step, _, _ in seen] == [0, 1, 2, 3] and seen[-1][1] == 0
    assert torch.equal(seen[-1][2], data().expand(2, -1, -1)) and not made.any()


def test_a_single_codebook_has_plain_ids():
    ids = torch.randint(16, (6, 1), generator=torch.Generator().manual_seed(2))
    spec = LatentSpec((6,), dim=1, vocab=16)
    made = generating.sample(BitDiffusion(), Oracle(ids, 16), None, spec, draws(), 3).ids
    assert made.shape == (2, 6) and torch.equal(stack_ids(made)[0], ids)


def test_what_does_not_fit_is_one_line():
    with pytest.raises(ValueError, match="steps is 0; give 1 or more"):
        generating.check_sampler(BitDiffusion(), 0, SPEC)
    with pytest.raises(ValueError, match="this one has 12"):
        BitDiffusion().check_codes(LatentSpec((6,), 1, 12))
    with pytest.raises(ValueError, match="protocol"):
        BitDiffusion().read_settings({"protocol": "other"})
    with pytest.raises(FloatingPointError):
        broken = Oracle(data(), doubt=math.nan)
        generating.sample(BitDiffusion(), broken, None, SPEC, draws(), 2)
