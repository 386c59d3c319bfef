"""Masked token modelling: the network learns the ids of masked tokens, and fills in a code in a few parallel steps."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin  # noqa: F401  diffusers looks for it in the component's own module when loading
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec, plain_ids, stack_ids
from pipeline.draws import Draws
from pipeline.objectives.base import Objective, OnStep, check_share
from pipeline.samplers.guidance import Guidance, both_halves
from pipeline.samplers.unmasking import Unmasking, mask_rate, masked_counts


class Numbers(NamedTuple):
    """The uniform numbers of one sampling."""

    ids: Tensor  # [B, steps, N, codebooks]
    order: Tensor  # [B, steps, N]


class MaskedToken(Objective):
    """Term `masked_token`: the cross-entropy of ids, given those of the tokens that are not masked.

    MaskGIT (Chang et al., arXiv:2202.04200); the defaults are those of TiTok's generator (arXiv:2406.07550).

    Args:
        schedule: of the share of an image's tokens that is masked, at a uniform number; see `mask_rate`.
        label_smoothing: share of the target that is spread over all ids.
        unmasked_weight: of tokens that are not masked, beside 1 for masked ones: 0 in MaskGIT, 1 in Halton-MaskGIT.
    """

    role = "masked"
    discrete = True

    @register_to_config
    def __init__(
        self,
        schedule: Literal["arccos", "cosine", "linear"] = "arccos",
        label_smoothing: float = 0.1,
        unmasked_weight: float = 0.1,
    ):
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} is a share from 0 to below 1")
        if unmasked_weight < 0:
            raise ValueError(f"unmasked_weight={unmasked_weight} is below 0; 0 trains on masked tokens alone")

    @property
    def terms(self) -> tuple[str, ...]:
        return ("masked_token",)

    def default_steps(self, spec: LatentSpec) -> int:
        return min(8, spec.tokens)

    def draw(self, code: Code, draws: Draws) -> dict[str, Tensor | Draws]:
        """masked [B, N] bool, weight (of all tokens of an image, in the mean over the global batch), and dropout.

        An image's number of masked tokens is its rate times N, rounded, and at least 1.
        """
        tokens = code.ids.shape[1]
        places = draws.uniform("mask_places", (tokens,)).argsort(dim=-1).argsort(dim=-1)  # ranks
        masked = places < self._count(draws.uniform("mask_rate"), tokens)[:, None]
        everywhere = self._count(draws.uniform_of_all("mask_rate"), tokens)
        weight = (everywhere + self.config.unmasked_weight * (tokens - everywhere)).mean()
        return {"masked": masked, "weight": weight, "dropout": draws}

    def loss(
        self,
        network: nn.Module,
        code: Code,
        condition: Condition | None,
        masked: Tensor,
        weight: Tensor | None = None,
        dropout: Draws | None = None,
    ) -> dict[str, Tensor]:
        """The weighted mean over tokens and codebooks.

        `weight` is what an image's weights add up to, in the mean: of the batch at hand where it is not given. In
        training it is that of the global batch, so that the loss does not depend on how the batch is divided.
        """
        ids = stack_ids(code.ids)
        logits = network(ids, masked, condition, dropout=dropout).float()  # [B, N, codebooks, vocab]
        smoothing = self.config.label_smoothing
        each = F.cross_entropy(logits.flatten(0, 2), ids.flatten(), reduction="none", label_smoothing=smoothing)
        weights = torch.where(masked, 1.0, self.config.unmasked_weight)  # [B, N]
        weight = weights.sum(dim=1).mean() if weight is None else weight
        return {"masked_token": (weights * each.view_as(ids).mean(dim=-1)).sum(dim=1).mean() / weight}

    @torch.no_grad()
    def sample(
        self,
        network: nn.Module,
        condition: Condition | None,
        spec: LatentSpec,
        draws: Draws,
        steps: int,
        guidance: Guidance = Guidance(),
        on_step: OnStep | None = None,
        *,
        schedule: Literal["arccos", "cosine", "linear"] | None = None,
        order: Literal["confidence", "halton", "random"] = "confidence",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        anneal: bool = False,
        soften: bool = False,
        confidence: Literal["probability", "logit"] = "probability",
        noise: float = 4.5,
    ) -> Code:
        """A code from masks alone: every step chooses all masked ids and masks the tokens again that can wait.

        The defaults are MaskGIT's. TiTok's generator, which adds one Gumbel noise to the logits and one to the
        confidence, both of a temperature that falls from t to 0, is `temperature=t, anneal=true, confidence=logit,
        noise=t`: the largest of logits and Gumbel noise of temperature t is a choice at temperature t.

        Args:
            schedule: of the share that is masked after each step; the one of training where not stated.
            order: which tokens wait: the least sure, the last of a Halton sequence, or any.
            temperature, top_k, top_p: of the choice of ids, see `Choice`.
            anneal: the temperature falls linearly to 0 at the last step.
            soften: logits are divided by a number that falls linearly from 1.3 to 0.5 at the last step.
            confidence: how sure a token is: the log-probability of its ids, or their logit.
            noise: temperature of the Gumbel noise on the confidence, which falls linearly to 0 at the last step.
        """
        settings = Unmasking(schedule, order, temperature, top_k, top_p, anneal, soften, confidence, noise)
        numbers = self._numbers(draws, steps, spec)
        ids = torch.zeros_like(numbers.ids[:, 0], dtype=torch.int64)
        masked = torch.ones_like(ids[..., 0], dtype=torch.bool)
        return self._fill(network, condition, spec, (ids, masked), numbers, settings, guidance, on_step)

    @torch.no_grad()
    def regenerate(
        self,
        network: nn.Module,
        code: Code,
        condition: Condition | None,
        preserve: float,
        draws: Draws,
        steps: int,
        guidance: Guidance = Guidance(),
        **sampler,
    ) -> Code:
        """The code with all but a random share `preserve` of each image's tokens masked and filled in again.

        Takes `steps` steps, or as many as there are masked tokens. `sampler`: the settings of `sample`.
        """
        check_share(preserve)
        config = network.config
        spec = LatentSpec(tuple(config.grid), dim=0, vocab=config.vocab, codebooks=config.codebooks)
        kept = math.floor(spec.tokens * preserve + 1e-9)
        if kept == spec.tokens:
            return Code(ids=code.ids.clone())
        if not kept:
            return self.sample(network, condition, spec, draws, steps, guidance, **sampler)
        ranks = draws.uniform("preserved", (spec.tokens,)).argsort(dim=-1).argsort(dim=-1)
        numbers = self._numbers(draws, min(steps, spec.tokens - kept), spec)
        start = stack_ids(code.ids), ranks >= kept
        return self._fill(network, condition, spec, start, numbers, Unmasking(**sampler), guidance)

    def check_sampler(self, steps: int, spec: LatentSpec, **sampler) -> None:
        """ValueError where these settings, or this number of steps, do not fit the codes."""
        Unmasking(**sampler).validate(steps, spec)

    def _fill(
        self,
        network: nn.Module,
        condition: Condition | None,
        spec: LatentSpec,
        start: tuple[Tensor, Tensor],
        numbers: Numbers,
        settings: Unmasking,
        guidance: Guidance,
        on_step: OnStep | None = None,
    ) -> Code:
        """The code at `start`: ids [B, N, codebooks] and which tokens are masked [B, N], as many in every image."""
        (ids, masked), steps = start, numbers.ids.shape[1]
        both = both_halves(network, condition, guidance)
        schedule = settings.schedule or self.config.schedule
        for step, left in enumerate(masked_counts(schedule, int(masked[0].sum()), steps)):
            scale, rest = guidance.at(1 - step / steps), 1 - (step + 1) / steps
            choose = settings.chooser(rest, scale, numbers.ids[:, step])
            if scale == 1:
                chosen = network(ids, masked, condition, choose=choose)
            else:
                chosen = network(torch.cat([ids, ids]), torch.cat([masked, masked]), both, choose=choose)[: len(ids)]
            ids = torch.where(masked[..., None], chosen, ids)
            lateness = settings.lateness(choose.sureness, numbers.order[:, step], rest, spec.grid)
            masked = masked & lowest(lateness.masked_fill(~masked, torch.inf), left)
            ids, masked = told(on_step, step, rest, ids, masked, spec.vocab)
        return Code(ids=plain_ids(ids))

    def _count(self, uniform: Tensor, tokens: int) -> Tensor:
        """How many of an image's tokens are masked in training, float32 of the shape of `uniform`."""
        return (mask_rate(self.config.schedule, uniform) * tokens).round().clamp(min=1)

    def _numbers(self, draws: Draws, steps: int, spec: LatentSpec) -> Numbers:
        ids = draws.uniform("ids", (steps, spec.tokens, spec.codebooks))
        return Numbers(ids, draws.uniform("order", (steps, spec.tokens)))


def lowest(values: Tensor, count: int) -> Tensor:
    """Which entries are the `count` lowest of their row [B, N], bool."""
    places = values.argsort(dim=-1, stable=True)[:, :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, places, True)


def told(
    report: OnStep | None, step: int, rest: float, ids: Tensor, masked: Tensor, vocab: int
) -> tuple[Tensor, Tensor]:
    """The state to go on from: what `report` returns for ids in which `vocab` stands for a mask, or the one at hand."""
    if report is None:
        return ids, masked
    changed = report(step, rest, plain_ids(ids.masked_fill(masked[..., None], vocab)))
    if changed is None:
        return ids, masked
    changed = stack_ids(changed)
    return changed, (changed == vocab).any(dim=-1)
