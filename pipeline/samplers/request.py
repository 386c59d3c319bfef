"""What a generator is asked for in one sampling."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers import SchedulerMixin
from torch import Tensor, nn

from pipeline.code import Condition, LatentSpec
from pipeline.draws import Draws
from pipeline.samplers.guidance import Guidance, Predict, both_halves, guided

# (step, noise level or fraction of the steps to come, state) -> the state to continue from, None for the one at hand
OnStep = Callable[[int, float, Tensor], Tensor | None]


@dataclass(frozen=True)
class SamplingRequest:
    """One sampling of a network: `Objective.sample` and `Objective.regenerate` take it, beside their own settings."""

    network: nn.Module
    condition: Condition | None  # None for an unconditional network
    spec: LatentSpec  # of the codes
    draws: Draws  # of everything random
    steps: int  # network evaluations
    guidance: Guidance = Guidance()
    on_step: OnStep | None = None  # called after every step
    weak: nn.Module | None = None  # a network to guide away from, in place of the null label
    scheduler: SchedulerMixin | None = None  # of diffusers, in place of the objective's own solver
    negative: Condition | None = None  # what guidance leads away from, in place of the null condition

    def predict(self) -> Predict:
        """The network under guidance, for continuous codes."""
        return guided(self.network, self.condition, self.guidance, self.weak, self.negative)

    def both_halves(self) -> Condition | None:
        """What a network of ids is asked for under guidance; see `pipeline.samplers.guidance.both_halves`."""
        return both_halves(self.network, self.condition, self.guidance, self.negative)
