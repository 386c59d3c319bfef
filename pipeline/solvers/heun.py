"""Heun's method: second order, two evaluations per interval."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pipeline.samplers.levels import Report, Velocity, reported
from pipeline.solvers.base import Flow, FlowSolver


@dataclass(frozen=True)
class Heun(FlowSolver):
    """Second order; it ends in one Euler step, or in two when the number of evaluations is even."""

    stops_early: ClassVar[bool] = True

    def solve(self, flow: Flow, z: Tensor) -> Tensor:
        intervals, plain = heun_intervals(flow.steps)
        return heun(flow.velocity, z, flow.levels(intervals), plain, flow.report)


def heun(velocity: Velocity, z: Tensor, levels: list[float], plain: int = 1, report: Report | None = None) -> Tensor:
    """Second order, two evaluations an interval but for the last `plain` ones, which are Euler steps.

    Karras et al., arXiv:2206.00364, algorithm 1 with plain = 1: u = 0 is never evaluated.
    """
    done = 0
    for i, (u, lower) in enumerate(zip(levels, levels[1:])):
        slope = velocity(z, u)
        ahead = z + (lower - u) * slope
        done += 1
        if i < len(levels) - 1 - plain:
            ahead = z + (lower - u) / 2 * (slope + velocity(ahead, lower))
            done += 1
        z = reported(report, done - 1, lower, ahead)
    return z


def heun_intervals(steps: int) -> tuple[int, int]:
    """Intervals and plain ones among them that `steps` evaluations pay for: one plain if odd, two if even."""
    plain = min(2 - steps % 2, steps)
    return (steps - plain) // 2 + plain, plain
