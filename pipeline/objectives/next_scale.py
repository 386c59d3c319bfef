"""Next-scale prediction: the network learns all ids of a level from the levels before it, coarse to fine."""

from typing import NamedTuple

import torch.nn.functional as F
from diffusers import SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import Draws
from pipeline.objectives.base import Objective
from pipeline.ranges import FractionBelowOne
from pipeline.samplers.next_level import LevelChoice, LevelSampler
from pipeline.samplers.original import Original
from pipeline.samplers.request import SamplingRequest


class NextScaleRandomness(NamedTuple):
    """The random arguments of the loss."""

    dropout: Draws | None = None  # where dropout draws from


class NextScale(Objective):
    """Term `next_scale`: cross-entropy in nats an id, the mean over the tokens of all levels.

    VAR (Tian et al., arXiv:2404.02905). `label_smoothing` is the share of the target that is spread over all ids.
    """

    role = "levels"
    discrete = True
    settings = LevelChoice

    @register_to_config
    def __init__(self, label_smoothing: FractionBelowOne = 0.0):
        pass

    @property
    def terms(self) -> tuple[str, ...]:
        return ("next_scale",)

    def default_steps(self, spec: LatentSpec) -> int:
        return len(spec.levels)

    def check_codes(self, spec: LatentSpec) -> None:
        """ValueError for codes without levels."""
        if not spec.levels:
            raise ValueError(
                ": next_scale predicts level after level, and this code has none; take"
                " tokenizer.model.bottleneck.kind=multi_scale, or tokenizer.model.kind=restok"
            )

    def check_sampler(self, steps: int, spec: LatentSpec, settings: LevelChoice) -> None:
        """ValueError where `steps` is not the number of levels, or a setting is out of range."""
        LevelSampler(settings).check(steps, spec)

    def draw(self, code: Code, draws: Draws) -> NextScaleRandomness:
        return NextScaleRandomness(draws)

    def loss(
        self,
        network: nn.Module,
        code: Code,
        condition: Condition | None,
        randomness: NextScaleRandomness = NextScaleRandomness(),
    ) -> dict[str, Tensor]:
        logits = network(code.ids, condition, dropout=randomness.dropout)  # [B, N, codebooks, vocab]
        smoothing = self.config.label_smoothing
        loss = F.cross_entropy(logits.flatten(0, 2).float(), code.ids.flatten(), label_smoothing=smoothing)
        return {"next_scale": loss}

    def sample(self, request: SamplingRequest, settings: LevelChoice = LevelChoice()) -> Code:
        """A code in an evaluation a level, chosen by one uniform number per id, `draws.uniform("choice", [N, K])`.

        At level i of K guidance is that of the noise level 1 - i / (K - 1), so that a linear schedule begins without
        and ends with its whole scale. `on_step` is called as (i, 1 - (i + 1) / K, ids) after each level; it may return
        ids with tokens of that level changed.
        """
        return LevelSampler(settings).sample(request)

    def regenerate(self, request: SamplingRequest, original: Original, settings: LevelChoice = LevelChoice()) -> Code:
        """The code with its coarsest tokens, a fraction `preserve`, fed back; see `LevelSampler.regenerate`."""
        return LevelSampler(settings).regenerate(request, original)
