"""Solvers that carry a state down a ladder of noise levels, as functions of (velocity, state, levels)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.draws import Draws
from pipeline.samplers.paths import Path

Levels = TypeVar("Levels", float, np.ndarray, Tensor)
Velocity = Callable[[Tensor, float], Tensor]  # (z [B, N, C], u) -> dz/du
Report = Callable[[int, float, Tensor], Tensor | None]  # (evaluations done - 1, level reached, state)


def ladder(intervals: int, shift: float = 1.0, start: float = 1.0, end: float = 0.0) -> list[float]:
    """`intervals` + 1 falling noise levels from `start` to `end` * `start`, even before u -> s u / (1 + (s - 1) u).

    `start` and `end` are meant before the shift. With end = 0 they are the levels of diffusers' flow-matching Euler
    scheduler under sigmas = linspace(1, 1/n, n), to the bit: float32, the shift applied in float32.
    """
    falling = np.linspace(1, end, intervals + 1) if end else np.append(np.linspace(1, 1 / intervals, intervals), 0.0)
    return [float(level) for level in shifted((start * falling).astype(np.float32), shift)]


def shifted(u: Levels, shift: float) -> Levels:
    """s u / (1 + (s - 1) u): above 1 the shift keeps longer to the noise (Esser et al., arXiv:2403.03206, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)


def check_shift(shift: float, base: float | None) -> None:
    """ValueError for a shift out of range, and where a base states another one besides."""
    if shift <= 0 or (base is not None and base <= 0):
        raise ValueError(f"shift={base or shift} must be above 0; shift=1 leaves the noise levels as they are")
    if base is not None and shift != 1:
        raise ValueError(f"shift={shift:g} and shift_base={base:g} both state the shift; leave one of them out")


def settled_shift(shape: Sequence[int], shift: float, base: float | None) -> float:
    """The shift of codes [N, C]: as stated, or with a base sqrt(N C / base), as in RAE (arXiv:2510.11690).

    Raises ValueError, as `check_shift`, and where the base is more than there are numbers: the levels would turn
    towards the data, which codes of few numbers do not need.
    """
    check_shift(shift, base)
    if base is None:
        return shift
    if base > math.prod(shape):
        raise ValueError(
            f"shift_base={base:g} is for codes of more numbers: {shape[0]} tokens of {shape[1]} channels make"
            f" {math.prod(shape)}; state a smaller one, for example shift_base={math.prod(shape) / 8:g}"
        )
    return math.sqrt(math.prod(shape) / base)


def unshifted(u: float, shift: float) -> float:
    """The inverse of `shifted`."""
    return u / (shift - (shift - 1) * u)


def euler(velocity: Velocity, z: Tensor, levels: list[float], report: Report | None = None) -> Tensor:
    """First order, one evaluation an interval; bit-equal to diffusers' FlowMatchEulerDiscreteScheduler."""
    for i, (u, lower) in enumerate(zip(levels, levels[1:])):
        z = told(report, i, lower, z + (lower - u) * velocity(z, u))
    return z


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
        z = told(report, done - 1, lower, ahead)
    return z


def heun_intervals(steps: int) -> tuple[int, int]:
    """Intervals and plain ones among them that `steps` evaluations pay for: one plain if odd, two if even."""
    plain = min(2 - steps % 2, steps)
    return (steps - plain) // 2 + plain, plain


DiffusionForm = Literal["constant", "path", "sigma", "linear", "decreasing", "increasing_decreasing"]
LastStep = Literal["mean", "euler", "tweedie", "none"]
Solver = Literal["euler", "heun", "unipc", "dpmpp_2m", "sde", "sde_heun"]


@dataclass(frozen=True)
class FlowSampling:
    """How a flow is integrated: the solver, and what the stochastic ones add.

    heun ends in one Euler step, or in two when the number of steps is even; sde is Euler-Maruyama, sde_heun adds noise
    and then takes a Heun step (and one Euler-Maruyama step when the number does not come out).
    """

    solver: Solver = "euler"
    shift: float = 1.0  # u -> s u / (1 + (s - 1) u), above 1 longer at the noise; 1/0.3 is LightningDiT's 0.3
    shift_base: float | None = None  # in place of shift, as in training
    diffusion: DiffusionForm = "sigma"  # w(u) of the sde solvers
    diffusion_scale: float = 1.0
    last_step: LastStep = "mean"
    last_step_size: float = 0.04  # of the sde solvers, before the shift

    def settled(self, shape: Sequence[int]) -> "FlowSampling":
        """The settings for codes [N, C], whose shift is stated."""
        return replace(self, shift=settled_shift(shape, self.shift, self.shift_base), shift_base=None)

    def validate(self, steps: int) -> None:
        """ValueError with one line where `steps` or a setting is out of range."""
        if steps < 1:
            raise ValueError(f"steps={steps} makes no image; give at least 1")
        if self.shift <= 0:
            raise ValueError(f"shift={self.shift} must be above 0; 1 leaves the noise levels as they are")
        if self.solver.startswith("sde"):
            self.stochastic_steps(steps)
            if not 0 < self.last_step_size < 1:
                raise ValueError(f"last_step_size={self.last_step_size} must lie between 0 and 1; SiT uses 0.04")

    def stochastic_steps(self, steps: int) -> tuple[int, int]:
        """Intervals, and how many of them are corrected, that `steps` evaluations pay for."""
        paid = steps if self.last_step == "none" else steps - 1
        if self.solver == "sde_heun" and self.last_step == "none":
            raise ValueError("sde_heun would need the score at noise level 0; set last_step=mean, euler or tweedie")
        if paid < 1:
            raise ValueError(f"solver={self.solver} with last_step={self.last_step} needs at least 2 steps")
        return (paid, 0) if self.solver == "sde" else (paid - paid // 2, paid // 2)


@dataclass(frozen=True)
class Reverse:
    """The reverse-time equation dz = (velocity - w score) du + sqrt(2 w) dW with a chosen w(u) (SiT, section 2.4)."""

    path: Path
    velocity: Velocity
    form: DiffusionForm = "sigma"
    scale: float = 1.0

    def noise_rate(self, u: float) -> float:
        """w(u): how much noise is put in and taken out again. `path` is the forward process's own."""
        level = torch.tensor(u, dtype=torch.float64)
        if self.form == "decreasing":
            return 0.25 * (1 - self.scale * math.cos(math.pi * u)) ** 2
        shapes = {
            "constant": lambda: 1.0,
            "path": lambda: self.path.diffusion(level).item(),
            "sigma": lambda: self.path.sigma(level).item(),
            "linear": lambda: u,
            "increasing_decreasing": lambda: math.sin(math.pi * u) ** 2,
        }
        return self.scale * shapes[self.form]()

    def drift(self, z: Tensor, u: float) -> Tensor:
        velocity = self.velocity(z, u)
        level = torch.tensor(u, dtype=torch.float64)
        return velocity - self.noise_rate(u) * self.path.score_from_velocity(velocity, z, level)

    def last(self, z: Tensor, u: float, kind: LastStep) -> Tensor:
        """From level u to 0 in one step without noise: `tweedie` is the expected data given z."""
        if kind == "mean":
            return z - u * self.drift(z, u)
        velocity = self.velocity(z, u)
        if kind == "euler":
            return z - u * velocity
        return self.path.data_from_velocity(velocity, z, torch.tensor(u, dtype=torch.float64))


def stochastic(
    reverse: Reverse,
    z: Tensor,
    levels: list[float],
    draws: Draws,
    corrected: int = 0,
    last_step: LastStep = "mean",
    report: Report | None = None,
) -> Tensor:
    """Euler-Maruyama down the levels, the noise of step i being `draws.normal("step_i", ...)`.

    The first `corrected` steps add their noise first and then take a deterministic Heun step of the drift, with two
    evaluations. A last step other than "none" goes from the lowest level to 0.
    """
    done = 0
    for i, (u, lower) in enumerate(zip(levels, levels[1:])):
        kick = math.sqrt(2 * reverse.noise_rate(u) * (u - lower)) * draws.normal(f"step_{i}", tuple(z.shape[1:]))
        if i < corrected:
            noisy = z + kick
            slope = reverse.drift(noisy, u)
            slope_ahead = reverse.drift(noisy + (lower - u) * slope, lower)
            z, done = noisy + (lower - u) / 2 * (slope + slope_ahead), done + 2
        else:
            z, done = z + (lower - u) * reverse.drift(z, u) + kick, done + 1
        z = told(report, done - 1, lower, z)
    if last_step != "none":
        z = told(report, done, 0.0, reverse.last(z, levels[-1], last_step))
    return z


def told(report: Report | None, step: int, level: float, z: Tensor) -> Tensor:
    """The state to go on from: what `report` returns, or the one at hand."""
    changed = report(step, level, z) if report else None
    return z if changed is None else changed
