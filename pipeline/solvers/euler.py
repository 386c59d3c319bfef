"""Euler's method: first order, one evaluation per interval."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pipeline.samplers.levels import Report, Velocity, reported
from pipeline.solvers.base import Flow, FlowSolver


@dataclass(frozen=True)
class Euler(FlowSolver):
    """First order; bit-equal to diffusers' FlowMatchEulerDiscreteScheduler."""

    stops_early: ClassVar[bool] = True

    def solve(self, flow: Flow, z: Tensor) -> Tensor:
        return euler(flow.velocity, z, flow.levels(flow.steps), flow.report)


def euler(velocity: Velocity, z: Tensor, levels: list[float], report: Report | None = None) -> Tensor:
    """First order, one evaluation an interval; bit-equal to diffusers' FlowMatchEulerDiscreteScheduler."""
    for i, (u, lower) in enumerate(zip(levels, levels[1:])):
        z = reported(report, i, lower, z + (lower - u) * velocity(z, u))
    return z
