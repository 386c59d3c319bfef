"""Euler-Maruyama: the reverse-time equation with noise of its own in every step (SiT, section 2.4)."""

from dataclasses import dataclass

from torch import Tensor

from pipeline.samplers.reverse_sde import Reverse, check_last_step, stochastic
from pipeline.solvers.base import Flow, StochasticFlowSolver


@dataclass(frozen=True)
class Sde(StochasticFlowSolver):
    """First order, one evaluation per interval, and a last step without noise."""

    def check(self, steps: int) -> None:
        check_last_step("sde", self.last_step, steps)

    def solve(self, flow: Flow, z: Tensor) -> Tensor:
        reverse = Reverse(flow.path, flow.velocity, self.diffusion, self.diffusion_scale)
        intervals = flow.steps - (self.last_step != "none")
        levels = flow.levels(intervals, 0.0 if self.last_step == "none" else self.last_step_size)
        return stochastic(reverse, z, levels, flow.draws, 0, self.last_step, flow.report)
