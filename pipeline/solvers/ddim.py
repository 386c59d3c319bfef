"""DDIM: the non-Markovian reverse chain (Song et al., arXiv:2010.02502)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pipeline.ranges import Fraction
from pipeline.solvers.base import ChainSolver, ChainStep


@dataclass(frozen=True)
class Ddim(ChainSolver):
    """Deterministic, or with a fraction of DDPM's noise."""

    eta: Fraction = 0.0  # 0 draws no noise, 1 as much as ddpm

    def step(self, state: ChainStep, draw: Callable[[], Tensor]) -> Tensor:
        chain, index = state.chain, state.index
        noise, before = chain.noise_from_data(state.data, state.z, index), chain.signal_before[index]
        spread = self.eta * chain.posterior_variance[index].sqrt()  # equation 16
        mean = before.sqrt() * state.data + (1 - before - spread**2).sqrt() * noise
        return mean + spread * draw() if index and self.eta else mean
