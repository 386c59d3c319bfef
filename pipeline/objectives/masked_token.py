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
from pipeline.objectives.base import Objective
from pipeline.ranges import FractionBelowOne, NotNegative
from pipeline.samplers.original import Original
from pipeline.samplers.request import OnStep, SamplingRequest
from pipeline.samplers.unmasking import Unmasking, lowest, mask_rate, masked_anew, masked_counts


class Numbers(NamedTuple):
    """The uniform numbers of one sampling."""

    ids: Tensor | None  # [B, steps, N, codebooks]; None where every step draws its own, one for each logit
    order: Tensor  # [B, steps, N]


class MaskRandomness(NamedTuple):
    """The random arguments of the loss.

    `weight` is the mean of what an image's weights add up to: of the batch at hand where it is None. In training it is
    that of the global batch, so that the loss does not depend on how the batch is divided.
    """

    masked: Tensor  # [B, N] bool
    weight: Tensor | None = None  # of all tokens of an image
    dropout: Draws | None = None  # where dropout draws from


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
    settings = Unmasking

    @register_to_config
    def __init__(
        self,
        schedule: Literal["arccos", "cosine", "linear"] = "arccos",
        label_smoothing: FractionBelowOne = 0.1,
        unmasked_weight: NotNegative = 0.1,
    ):
        pass

    @property
    def terms(self) -> tuple[str, ...]:
        return ("masked_token",)

    def default_steps(self, spec: LatentSpec) -> int:
        return min(8, spec.tokens)

    def draw(self, code: Code, draws: Draws) -> MaskRandomness:
        """An image's number of masked tokens is its rate times N, rounded, and at least 1."""
        tokens = code.ids.shape[1]
        places = draws.uniform("mask_places", (tokens,)).argsort(dim=-1).argsort(dim=-1)  # ranks
        masked = places < self._count(draws.uniform("mask_rate"), tokens)[:, None]
        everywhere = self._count(draws.uniform_of_all("mask_rate"), tokens)
        weight = (everywhere + self.config.unmasked_weight * (tokens - everywhere)).mean()
        return MaskRandomness(masked, weight, draws)

    def loss(
        self, network: nn.Module, code: Code, condition: Condition | None, randomness: MaskRandomness
    ) -> dict[str, Tensor]:
        """The weighted mean over tokens and codebooks."""
        ids, (masked, weight, dropout) = stack_ids(code.ids), randomness
        logits = network(ids, masked, condition, dropout=dropout).float()  # [B, N, codebooks, vocab]
        smoothing = self.config.label_smoothing
        each = F.cross_entropy(logits.flatten(0, 2), ids.flatten(), reduction="none", label_smoothing=smoothing)
        weights = torch.where(masked, 1.0, self.config.unmasked_weight)  # [B, N]
        weight = weights.sum(dim=1).mean() if weight is None else weight
        return {"masked_token": (weights * each.view_as(ids).mean(dim=-1)).sum(dim=1).mean() / weight}

    @torch.no_grad()
    def sample(self, request: SamplingRequest, settings: Unmasking = Unmasking()) -> Code:
        """A code from masks alone: every step chooses all masked ids and masks the tokens again that can wait."""
        numbers = self._numbers(request.draws, request.steps, request.spec, settings)
        ids = torch.zeros_like(numbers.order[:, 0], dtype=torch.int64)[..., None].repeat(1, 1, request.spec.codebooks)
        masked = torch.ones_like(ids[..., 0], dtype=torch.bool)
        return self._fill(request, ids, masked, numbers, settings)

    @torch.no_grad()
    def regenerate(self, request: SamplingRequest, original: Original, settings: Unmasking = Unmasking()) -> Code:
        """The code with its tokens masked and filled in again, but for the kept ones and a random fraction `preserve`.

        Takes `request.steps` steps, or as many as there are tokens beside that fraction. The network is not asked in a
        step that settles no token of any image.
        """
        spec, draws, ids = request.spec, request.draws, stack_ids(original.code.ids)
        preserved = math.floor(spec.tokens * original.preserve + 1e-9)
        if original.stays_whole or preserved == spec.tokens:
            return original.copy()
        masked = masked_anew(ids, preserved, original.kept, draws)
        numbers = self._numbers(draws, min(request.steps, spec.tokens - preserved), spec, settings)
        return self._fill(request, ids.masked_fill(masked[..., None], 0), masked, numbers, settings)

    def check_sampler(self, steps: int, spec: LatentSpec, settings: Unmasking) -> None:
        """ValueError where these settings, or this number of steps, do not fit the codes."""
        settings.validate(steps, spec)

    def _fill(
        self, request: SamplingRequest, ids: Tensor, masked: Tensor, numbers: Numbers, settings: Unmasking
    ) -> Code:
        """The code that starts from ids [B, N, codebooks] with masked tokens [B, N], each image at its own rate."""
        network, condition, guidance = request.network, request.condition, request.guidance
        both, steps, spec = request.both_halves(), numbers.order.shape[1], request.spec
        schedule = settings.schedule or self.config.schedule
        counts = [masked_counts(schedule, count, steps) for count in masked.sum(dim=1).tolist()]
        for step, left in enumerate(torch.tensor(counts, device=ids.device).unbind(dim=1)):
            rest = 1 - (step + 1) / steps
            scale = guidance.at(rest if settings.guided_after else 1 - step / steps)
            if numbers.ids is None:
                uniform = request.draws.uniform(f"gumbel_{step}", (spec.tokens, spec.codebooks, spec.vocab))
            else:
                uniform = numbers.ids[:, step]
            if (masked.sum(dim=1) > left).any():
                choose = settings.chooser(rest, scale, uniform)
                if scale == 1:
                    chosen = network(ids, masked, condition, choose=choose)
                else:
                    asked = torch.cat([ids, ids]), torch.cat([masked, masked])
                    chosen = network(*asked, both, choose=choose)[: len(ids)]
                ids = torch.where(masked[..., None], chosen, ids)
                lateness = settings.lateness(choose.sureness, numbers.order[:, step], rest, spec.grid)
                masked = masked & lowest(lateness.masked_fill(~masked, torch.inf), left)
            ids, masked = reported(request.on_step, step, rest, MaskedIds(ids, masked, spec.vocab))
        return Code(ids=plain_ids(ids))

    def _count(self, uniform: Tensor, tokens: int) -> Tensor:
        """How many of an image's tokens are masked in training, float32 of the shape of `uniform`."""
        return (mask_rate(self.config.schedule, uniform) * tokens).round().clamp(min=1)

    def _numbers(self, draws: Draws, steps: int, spec: LatentSpec, settings: Unmasking) -> Numbers:
        inverse = settings.draw == "inverse"
        ids = draws.uniform("ids", (steps, spec.tokens, spec.codebooks)) if inverse else None
        return Numbers(ids, draws.uniform("order", (steps, spec.tokens)))


class MaskedIds(NamedTuple):
    """Codes that are being filled in."""

    ids: Tensor  # [B, N, codebooks]
    masked: Tensor  # [B, N] bool
    vocab: int  # the id that stands for a mask where a callback reads or changes ids


def reported(on_step: OnStep | None, step: int, rest: float, state: MaskedIds) -> tuple[Tensor, Tensor]:
    """Ids and masks to continue from: those that `on_step` returns, or those at hand."""
    ids, masked, vocab = state
    changed = None if on_step is None else on_step(step, rest, plain_ids(ids.masked_fill(masked[..., None], vocab)))
    if changed is None:
        return ids, masked
    changed = stack_ids(changed)
    return changed, (changed == vocab).any(dim=-1)
