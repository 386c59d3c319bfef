"""The stochastic Heun method: a step adds its noise and then takes a Heun step of the reverse-time equation."""

from dataclasses import dataclass

from torch import Tensor

from pipeline.samplers.reverse_sde import Reverse, check_last_step, stochastic
from pipeline.solvers.base import Flow, StochasticFlowSolver


@dataclass(frozen=True)
class SdeHeun(StochasticFlowSolver):
    """Two evaluations per interval, one Euler-Maruyama step when the number does not come out, and a last step."""

    def check(self, steps: int) -> None:
        if self.last_step == "none":
            raise ValueError("sde_heun would need the score at noise level 0; set last_step=mean, euler or tweedie")
        check_last_step("sde_heun", self.last_step, steps)

    def solve(self, flow: Flow, z: Tensor) -> Tensor:
        reverse, paid = Reverse(flow.path, flow.velocity, self.diffusion, self.diffusion_scale), flow.steps - 1
        levels = flow.levels(paid - paid // 2, self.last_step_size)
        return stochastic(reverse, z, levels, flow.draws, paid // 2, self.last_step, flow.report)
