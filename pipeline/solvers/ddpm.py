"""DDPM: ancestral sampling of the reverse chain (Ho et al., arXiv:2006.11239)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.solvers.base import ChainSolver, ChainStep


@dataclass(frozen=True)
class Ddpm(ChainSolver):
    """Draws every state but the last from p(z_{t-1} | z_t)."""

    def step(self, state: ChainStep, draw: Callable[[], Tensor]) -> Tensor:
        return state.mean + torch.exp(0.5 * state.log_variance) * draw() if state.index else state.mean
