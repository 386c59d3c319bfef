"""Euler-Maruyama: the reverse-time equation with noise of its own in every step (SiT, section 2.4)."""

from dataclasses import dataclass

from torch import Tensor

from pipeline.samplers.reverse_sde import DiffusionForm, LastStep, Reverse, check_last_step, stochastic
from pipeline.solvers.base import Flow, FlowSolver


@dataclass(frozen=True)
class Sde(FlowSolver):
    """First order, one evaluation per interval, and a last step without noise."""

    diffusion: DiffusionForm = "sigma"  # w(u), how much noise is put in and taken out again
    diffusion_scale: float = 1.0
    last_step: LastStep = "mean"
    last_step_size: float = 0.04  # before the shift

    @property
    def singular_at_noise(self) -> bool:
        return self.diffusion == "path"

    def check(self, steps: int) -> None:
        check_last_step("sde", self.last_step, self.last_step_size, steps)

    def solve(self, flow: Flow, z: Tensor) -> Tensor:
        reverse = Reverse(flow.path, flow.velocity, self.diffusion, self.diffusion_scale)
        intervals = flow.steps - (self.last_step != "none")
        levels = flow.levels(intervals, 0.0 if self.last_step == "none" else self.last_step_size)
        return stochastic(reverse, z, levels, flow.draws, 0, self.last_step, flow.report)
