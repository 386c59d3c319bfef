"""Generating ids level by level, all of a level at once: guided, with some tokens given, and as mixtures of codes."""

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.code import Code, Condition, LatentSpec, plain_ids, stack_ids
from pipeline.nn.finite import check_finite
from pipeline.nn.tokens import Choose
from pipeline.samplers.choice import LOGITS, Choice
from pipeline.samplers.guidance import guided_logits
from pipeline.samplers.original import Original
from pipeline.samplers.request import OnStep, SamplingRequest

SHARPENED, COOLED = 0.27, 0.95  # of VAR's mixtures: temperature at the first level, and how much of it the last lacks
COLDEST = 0.005
TINY = 1e-20


class LevelNetwork(Protocol):
    """What sampling needs of a network: a memory of the levels so far, and the ids of the next one."""

    def begin(self, batch: int, condition: Condition | None, device: torch.device | None) -> Any: ...

    def advance(self, memory: Any, ids: Tensor | None, choose: Choose, weights: Tensor | None = None) -> Tensor: ...

    def code_vectors(self, ids: Tensor, weights: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class LevelChoice(Choice):
    """How an id is chosen, or with `smooth` what is put in the place of one.

    That is a mixture of code vectors, softmax((logits (1 + r) + Gumbel noise) / temperature), which grows sharper as r
    goes from 0 at the first level to 1 at the last: VAR's smoother images, not those of its published numbers.
    """

    smooth: bool = False  # mixtures of code vectors in place of ids


class LevelSampler:
    """How the ids of a code with levels are generated, by the settings of a choice."""

    def __init__(self, choice: LevelChoice):
        self.choice = choice

    def check(self, steps: int, spec: LatentSpec) -> None:
        """ValueError where the number of steps is not that of the levels, or the choice does not fit the codebook."""
        if steps != len(spec.levels):
            raise ValueError(
                f"a level is generated in one step: codes of {len(spec.levels)} levels take {len(spec.levels)} steps,"
                f" not {steps}; leave the number of steps out"
            )
        self.choice.validate(spec.vocab)

    def sample(self, request: SamplingRequest) -> Code:
        """A code from nothing but the condition; image i depends on row i of the draws alone."""
        self.check(request.steps, request.spec)
        return self._generate(request)

    def regenerate(self, request: SamplingRequest, original: Original) -> Code:
        """The code with a fraction `preserve` of its tokens, those of the coarsest levels, and the others made anew.

        Of the level that is preserved in part the tokens that stay are drawn. Kept tokens stay too. What stays is fed
        to the network in place of its choice, so that later levels follow from the mixture; with preserve = 0 it is
        `sample` of the same draws.
        """
        self.check(request.steps, request.spec)
        if original.stays_whole:
            return original.copy()
        return self._generate(request, original)

    @torch.no_grad()
    def _generate(self, request: SamplingRequest, original: Original | None = None) -> Code:
        network, spec, levels = request.network, request.spec, request.spec.levels
        uniform = request.draws.uniform("choice", (spec.tokens, spec.codebooks))
        given, stays = None, None
        if original is not None:
            given, stays = stack_ids(original.code.ids), tokens_that_stay(original, request)
        scales = [request.guidance.at(1 - level / max(len(levels) - 1, 1)) for level in range(len(levels))]
        halves = 2 if any(scale != 1 for scale in scales) else 1
        condition = request.both_halves() if halves == 2 else request.condition
        memory = network.begin(halves * len(uniform), condition, uniform.device)
        ids = torch.zeros(uniform.shape, dtype=torch.int64, device=uniform.device)
        last, weights, vectors = None, None, []
        for level, (span, scale) in enumerate(zip(spans(levels), scales)):
            choose = LevelChooser(self, request, level, scale, halves, uniform[:, span])
            chosen = network.advance(memory, last, choose, weights)[: len(uniform)]
            if stays is not None:
                chosen = torch.where(stays[:, span, None], given[:, span], chosen)
            ids[:, span] = chosen
            if request.on_step is not None:
                ids = reported(request.on_step, level, ids, span, len(levels))
            last = ids[:, span].repeat(halves, 1, 1)
            if self.choice.smooth:
                weights = choose.mixture(ids[:, span], None if stays is None else stays[:, span])
                vectors.append(network.code_vectors(ids[:, span], weights))
                weights = weights.repeat(halves, 1, 1, 1)
        return Code(z=torch.cat(vectors, dim=1) if vectors else None, ids=plain_ids(ids))


class LevelChooser:
    """Chooses the ids of one level from logits [B or 2B, n, vocab] of one codebook after another, as TokenHead asks."""

    def __init__(
        self, sampler: LevelSampler, request: SamplingRequest, level: int, scale: float, halves: int, uniform: Tensor
    ):
        self.choice, self.draws, self.level = sampler.choice, request.draws, level
        self.scale, self.halves, self.uniform = scale, halves, uniform  # [B, n, codebooks]
        self.ratio = level / max(len(request.spec.levels) - 1, 1)
        self.chosen: list[Tensor] = []  # [B, n] of each codebook
        self.weights: list[Tensor] = []  # [B, n, vocab] of each codebook

    def __call__(self, logits: Tensor, number: int) -> Tensor:
        logits = self.guide(logits.float())
        if self.choice.smooth:
            self.weights.append(self.mix(logits, number))
            ids = self.weights[-1].argmax(dim=-1)
        else:
            ids = self.choice(logits, self.uniform[..., number])
        self.chosen.append(ids)
        return ids.repeat(self.halves, 1)

    def guide(self, logits: Tensor) -> Tensor:
        """The logits [B, n, vocab] that are chosen from; NotFinite where some are not finite."""
        logits = guided_logits(logits, self.scale) if self.halves == 2 else logits
        check_finite(logits.amax(dim=-1), LOGITS)  # an id may have no chance, at minus infinity
        return logits

    def mix(self, logits: Tensor, number: int) -> Tensor:
        """The weights [B, n, vocab] of the mixture in the place of each token."""
        uniform = self.draws.uniform(f"smooth_{self.level}_{number}", tuple(logits.shape[1:])).to(logits)
        gumbel = -torch.log(-torch.log1p(-uniform).clamp(max=-TINY))
        temperature = max(SHARPENED * (1 - COOLED * self.ratio), COLDEST)
        logits = self.choice.filter(logits) * (1 + self.ratio)
        return ((logits + gumbel) / temperature).softmax(dim=-1)

    def mixture(self, ids: Tensor, stays: Tensor | None) -> Tensor:
        """The weights [B, n, codebooks, vocab] of a level; of ids [B, n, codebooks] that were given, theirs alone.

        These are of the tokens that stay, [B, n], and those that a callback has changed.
        """
        given, weights = ids != torch.stack(self.chosen, dim=-1), torch.stack(self.weights, dim=2)
        given = given if stays is None else given | stays[..., None]
        return torch.where(given[..., None], F.one_hot(ids, weights.shape[-1]).to(weights), weights)


def spans(levels: tuple[int, ...]) -> list[slice]:
    """Where the tokens of each level stand in the row."""
    ends = list(accumulate(levels))
    return [slice(end - tokens, end) for tokens, end in zip(levels, ends)]


def tokens_that_stay(original: Original, request: SamplingRequest) -> Tensor:
    """Which tokens [B, N] bool are fed back: the coarsest `preserve` of them, and the kept ones."""
    spec = request.spec
    left = math.floor(spec.tokens * original.preserve + 1e-9)
    drawn = request.draws.uniform("preserved", (spec.tokens,))
    stays = torch.zeros_like(drawn, dtype=torch.bool)
    for span, tokens in zip(spans(spec.levels), spec.levels):
        ranks = drawn[:, span].argsort(dim=-1).argsort(dim=-1)
        stays[:, span] = ranks < left
        left = max(0, left - tokens)
    return stays if original.kept is None else stays | original.kept


def reported(on_step: OnStep, level: int, ids: Tensor, span: slice, levels: int) -> Tensor:
    """Ids [B, N, codebooks] after `on_step` has seen them, with zeros where no token is yet; it may change the level.

    Raises ValueError where it changed another one, which the network was given already or will choose itself.
    """
    answer = on_step(level, 1 - (level + 1) / levels, plain_ids(ids.clone()))
    if answer is None:
        return ids
    changed = stack_ids(answer).to(ids)
    others = torch.ones(ids.shape[1], dtype=torch.bool, device=ids.device)
    others[span] = False
    if not torch.equal(changed[:, others], ids[:, others]):
        raise ValueError("a callback may change the tokens of its own level; the others are chosen or yet to come")
    return changed
