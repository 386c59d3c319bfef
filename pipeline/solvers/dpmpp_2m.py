"""DPM-Solver++ 2M (Lu et al., arXiv:2211.01095), by diffusers' scheduler."""

from dataclasses import dataclass
from typing import ClassVar

from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from pipeline.samplers.solvers_of_diffusers import at_levels, run_flow
from pipeline.solvers.base import Flow, FlowSolver


@dataclass(frozen=True)
class Dpmpp2m(FlowSolver):
    """Second order, multistep: one evaluation per interval."""

    linear_only: ClassVar[bool] = True

    def solve(self, flow: Flow, z: Tensor) -> Tensor:
        scheduler = at_levels(DPMSolverMultistepScheduler, flow.levels(flow.steps))
        return run_flow(scheduler, flow.velocity, z, report=flow.report)
