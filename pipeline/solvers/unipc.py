"""UniPC (Zhao et al., arXiv:2302.04867), by diffusers' scheduler."""

from dataclasses import dataclass
from typing import ClassVar

from diffusers import UniPCMultistepScheduler
from torch import Tensor

from pipeline.samplers.solvers_of_diffusers import at_levels, run_flow
from pipeline.solvers.base import Flow, FlowSolver


@dataclass(frozen=True)
class UniPC(FlowSolver):
    """Second order, multistep: one evaluation per interval."""

    linear_only: ClassVar[bool] = True

    def solve(self, flow: Flow, z: Tensor) -> Tensor:
        scheduler = at_levels(UniPCMultistepScheduler, flow.levels(flow.steps))
        return run_flow(scheduler, flow.velocity, z, report=flow.report)
