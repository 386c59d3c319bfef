"""What every solver promises: it ends at data, in as many evaluations as it is given, each image by its own noise."""

from functools import partial

import pytest
import torch
from torch import Tensor

from pipeline.draws import ImageDraws
from pipeline.samplers.noise_chain import NoiseChain
from pipeline.samplers.paths import PATHS
from pipeline.solvers.base import ChainStep, Flow, StochasticFlowSolver, solvers_of

LINEAR = PATHS["linear"]
DATA = torch.linspace(-1, 1, 24).view(3, 4, 2)  # [B, N, C]
NOISE = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
flows = pytest.mark.parametrize("kind", solvers_of("flow"))
chains = pytest.mark.parametrize("kind", solvers_of("noise_chain"))


class ToOnePoint:
    """The flow of a distribution that is one point an image: all that is left of z is noise."""

    def __init__(self, data: Tensor):
        self.data, self.levels = data, []

    def __call__(self, z: Tensor, u: float) -> Tensor:
        self.levels.append(float(u))
        level = torch.as_tensor(max(float(u), 1e-3), dtype=z.dtype)
        return LINEAR.velocity_from_data(self.data, z, level)


def follow(kind: str, steps: int, rows: slice = slice(0, 3)) -> tuple[Tensor, ToOnePoint, list[tuple[int, float]]]:
    """The end, the velocity with the levels it was asked at, and the steps and levels that were reported."""
    velocity, reported = ToOnePoint(DATA[rows]), []

    def report(step: int, level: float, z: Tensor) -> None:
        reported.append((step, level))

    solver = solvers_of("flow")[kind]()
    solver.check(steps)
    flow = Flow(velocity, LINEAR, steps, ImageDraws.from_seeds([5, 6, 7][rows]), report=report)
    return solver.solve(flow, NOISE[rows].clone()), velocity, reported


@flows
def test_a_flow_is_followed_to_data_in_the_steps_given(kind):
    end, velocity, reported = follow(kind, 40)
    assert len(velocity.levels) == 40
    assert velocity.levels[0] == pytest.approx(1, abs=1e-4) and all(0 <= level <= 1 for level in velocity.levels)
    steps, levels = zip(*reported)
    assert list(steps) == sorted(set(steps)) and steps[-1] == 39
    assert list(levels) == sorted(set(levels), reverse=True) and levels[-1] == 0
    stochastic = issubclass(solvers_of("flow")[kind], StochasticFlowSolver)  # noise of the last steps is left
    torch.testing.assert_close(end, DATA, atol=0.25 if stochastic else 2e-2, rtol=0)


@flows
def test_an_image_of_a_flow_depends_on_its_own_row(kind):
    together, _, _ = follow(kind, 8)
    for i in range(3):
        alone, _, _ = follow(kind, 8, slice(i, i + 1))
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-6, rtol=1e-6)


def refuse_noise() -> Tensor:
    raise AssertionError("the last step takes no noise")


@chains
def test_a_chain_ends_at_data(kind):
    chain = NoiseChain.linear(100, 1e-3, 0.1).spaced(20)
    solver, draws, z = solvers_of("noise_chain")[kind](), ImageDraws.from_seeds([5, 6, 7]), NOISE.clone()
    solver.check()
    for index in reversed(range(20)):
        mean = chain.posterior_mean(DATA, z, index)
        variance = chain.at(chain.posterior_log_variance, index, z)
        draw = partial(draws.normal, "step", (4, 2)) if index else refuse_noise
        z = solver.step(ChainStep(chain, index, z, mean, variance, DATA), draw)
    torch.testing.assert_close(z, DATA, atol=1e-4, rtol=0)
