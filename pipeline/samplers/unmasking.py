"""How a masked code is filled in: how many tokens are settled in each step, which ones, and by what choice."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from pipeline.code import LatentSpec
from pipeline.draws import Draws
from pipeline.nn.finite import check_finite
from pipeline.ranges import FractionAboveZero, NotNegative, RangedFields, Whole
from pipeline.samplers.choice import LOGITS, Choice
from pipeline.samplers.guidance import guided_logits

Schedule = Literal["arccos", "cosine", "linear"]
Order = Literal["confidence", "halton", "random"]
Confidence = Literal["probability", "logit"]
Draw = Literal["inverse", "gumbel"]

BASES = (2, 3, 5)  # of the Halton sequence, an axis each


def mask_rate(schedule: Schedule, x: Tensor) -> Tensor:
    """The share of tokens that is masked: 1 at x = 0, 0 at x = 1, concave between.

    x is uniform in training, and the share of the steps that are done in sampling. `cosine` is MaskGIT's
    (arXiv:2202.04200, section 3.3), `arccos` that of TiTok (arXiv:2406.07550) and Halton-MaskGIT (arXiv:2503.17076).
    """
    laws = {
        "arccos": lambda: torch.arccos(x) / (math.pi / 2),
        "cosine": lambda: torch.cos(math.pi / 2 * x),
        "linear": lambda: 1 - x,
    }
    return laws[schedule]()


def masked_counts(schedule: Schedule, tokens: int, steps: int) -> list[int]:
    """How many of `tokens` are still masked after each of `steps` steps: 0 at the end, and fewer every time where there
    are as many tokens.

    floor(tokens * rate), at most one less than before. The schedules being concave, that leaves one at least for every
    step to come. Where there are more steps than tokens, some of them settle none.
    """
    counts, masked, least = [], tokens, int(steps <= tokens)
    for step in range(1, steps + 1):
        rate = mask_rate(schedule, torch.tensor(step / steps, dtype=torch.float64)).item()
        masked = 0 if step == steps else min(masked - least, math.floor(tokens * rate + 1e-9))
        counts.append(masked)
    return counts


def masked_anew(tokens: Tensor, preserved: int, kept: Tensor | None, draws: Draws) -> Tensor:
    """Which of tokens [B, N, ...] are masked to be made anew, [B, N] bool: all but `preserved` of each image, drawn by
    `draws.uniform("preserved", (N,))`, and the `kept` ones."""
    masked = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if preserved:
        ranks = draws.uniform("preserved", (tokens.shape[1],)).argsort(dim=-1).argsort(dim=-1)
        masked = ranks >= preserved
    return masked if kept is None else masked & ~kept


def lowest(values: Tensor, counts: Tensor) -> Tensor:
    """Which entries are the lowest of their row [B, N], as many as `counts` [B] says, bool."""
    places = values.argsort(dim=-1, stable=True)
    first = torch.arange(values.shape[1], device=values.device) < counts[:, None]
    return torch.zeros_like(first).scatter(1, places, first)


@cache
def halton_order(grid: tuple[int, ...]) -> Tensor:
    """The tokens of a grid, [N] int64, in the order in which a Halton sequence first meets their cells.

    Every beginning of it is spread evenly. Bases 2, 3 and 5 for rows, columns and depth, from the sequence's first
    point (1/2, 1/3) on, as in Halton-MaskGIT (Besnier et al., arXiv:2503.17076).
    """
    met: dict[int, None] = {}
    index = 1
    while len(met) < math.prod(grid):
        place = 0
        for size, base in zip(grid, BASES):
            place = place * size + cell(index, base, size)
        met.setdefault(place)
        index += 1
    return torch.tensor(list(met))


def cell(index: int, base: int, size: int) -> int:
    """Which of `size` equal parts of [0, 1) holds the digits of `index` in `base`, mirrored at the point."""
    mirrored, scale = 0, 1
    while index:
        index, digit = divmod(index, base)
        mirrored, scale = mirrored * base + digit, scale * base
    return mirrored * size // scale


@dataclass(frozen=True)
class Unmasking(RangedFields):
    """How masked ids are chosen, and which of them are settled first; the defaults are MaskGIT's.

    TiTok's generator, which adds one Gumbel noise to the logits and one to the confidence, both of a temperature that
    falls from t to 0, is `temperature=t, anneal=true, confidence=logit, noise=t`: the largest of logits and Gumbel
    noise of temperature t is a choice at temperature t.
    """

    schedule: Schedule | None = None  # of the fraction masked after each step; null: the one of training
    order: Order = "confidence"  # which tokens wait: the least sure, the last of a Halton sequence, or any
    temperature: NotNegative = 1.0  # divides the logits; 0 takes the likeliest id
    top_k: Whole = 0  # leaves so many of the likeliest ids; 0 leaves all
    top_p: FractionAboveZero = 1.0  # leaves the likeliest ids that have this probability together
    anneal: bool = False  # the temperature falls linearly to 0 at the last step
    soften: bool = False  # logits are divided by a number that falls linearly from 1.3 to 0.5 at the last step
    confidence: Confidence = "probability"  # how sure a token is: the log-probability of its ids, or their logit
    noise: NotNegative = 4.5  # temperature of the Gumbel noise on the confidence, which falls linearly to 0
    draw: Draw = "inverse"  # an id by one uniform number, or by Gumbel noise on every logit, which costs one for each
    guided_after: bool = False  # guidance goes by the share of steps to come after a step, in place of before it

    def validate(self, steps: int, spec: LatentSpec) -> None:
        """ValueError with one line where these settings, or this number of steps, do not fit the codes."""
        if not 1 <= steps <= spec.tokens:
            raise ValueError(
                f"{steps} sampling steps for {spec.tokens} tokens: every step settles one token at least, so take"
                f" 1 to {spec.tokens}"
            )
        Choice(self.temperature, self.top_k, self.top_p).validate(spec.vocab)
        if self.draw == "gumbel" and (self.top_k or self.top_p != 1):
            raise ValueError("draw=gumbel leaves all ids in; leave top_k and top_p out, or take draw=inverse")
        if self.order == "halton" and len(spec.grid) > len(BASES):
            raise ValueError(f"order=halton is for grids of up to {len(BASES)} axes; take order=confidence or random")

    def chooser(self, rest: float, scale: float, uniform: Tensor) -> "Chooser":
        """The choice of a step after which the share `rest` of the steps is to come, guided by `scale`."""
        temperature = self.temperature * (rest if self.anneal else 1)
        inverse = Choice(temperature, self.top_k, self.top_p)
        choice = GumbelChoice(temperature) if self.draw == "gumbel" else inverse
        return Chooser(choice, 0.5 + 0.8 * rest if self.soften else 1.0, self.confidence, scale, uniform)

    def lateness(self, sureness: Tensor, uniform: Tensor, rest: float, grid: tuple[int, ...]) -> Tensor:
        """What orders the tokens, [B, N], those to be settled last first; `uniform` [B, N] is the step's noise."""
        if self.order == "random":
            return uniform
        if self.order == "halton":
            return -halton_order(grid).argsort().to(uniform).expand_as(uniform)
        return sureness + self.noise * rest * gumbel(uniform)


@dataclass(frozen=True)
class GumbelChoice:
    """Takes the largest of logits [..., vocab] and Gumbel noise of uniform numbers of their shape: [...]."""

    temperature: float  # of the noise

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        return (logits + self.temperature * gumbel(uniform)).argmax(dim=-1)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers in [0, 1)."""
    return -torch.log((-torch.log(uniform.clamp(min=1e-20))).clamp(min=1e-20))


class Chooser:
    """Chooses the ids of one step from logits [B or 2B, N, vocab] of one codebook after another, as TokenHead asks.

    With a scale other than 1 the logits come in two halves, conditional and unconditional. `sureness` [B, N] then holds
    the sum over the codebooks of the chosen ids' log-probabilities or logits.
    """

    def __init__(
        self, choice: Choice | GumbelChoice, divisor: float, confidence: Confidence, scale: float, uniform: Tensor
    ):
        self.choice, self.divisor, self.confidence, self.scale = choice, divisor, confidence, scale
        self.uniform = uniform  # [B, N, codebooks], or [B, N, codebooks, vocab]
        self.sureness = torch.zeros(uniform.shape[:2], device=uniform.device)

    def __call__(self, logits: Tensor, number: int) -> Tensor:
        logits = logits.float()
        logits = logits if self.scale == 1 else guided_logits(logits, self.scale)
        check_finite(logits.amax(dim=-1), LOGITS)  # an id may have no chance, at minus infinity
        logits = logits / self.divisor
        ids = self.choice(logits, self.uniform[:, :, number])
        scores = logits if self.confidence == "logit" else logits.log_softmax(dim=-1)
        self.sureness += scores.gather(-1, ids[..., None])[..., 0]
        return ids if self.scale == 1 else torch.cat([ids, ids])
