"""The reverse-time stochastic equation of a path, and steps down its noise levels."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.draws import Draws
from pipeline.samplers.levels import Report, Velocity, reported
from pipeline.samplers.paths import Path

DiffusionForm = Literal["constant", "path", "sigma", "linear", "decreasing", "increasing_decreasing"]
LastStep = Literal["mean", "euler", "tweedie", "none"]


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
        z = reported(report, done - 1, lower, z)
    if last_step != "none":
        z = reported(report, done, 0.0, reverse.last(z, levels[-1], last_step))
    return z


def check_last_step(solver: str, last_step: LastStep, steps: int) -> None:
    """ValueError where no evaluation is left before the last step."""
    if steps - (last_step != "none") < 1:
        raise ValueError(f"solver={solver} with last_step={last_step} needs at least 2 steps")
