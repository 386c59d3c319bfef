"""AdamW whose two running means take a byte a number each."""

import importlib.util

import torch
from torch import nn

from pipeline.optimizers.base import Betas, Grouping, Optimizer, groups_of, trained
from pipeline.ranges import Positive


class AdamW8bit(Optimizer):
    """Dettmers et al., arXiv:2110.02861, as bitsandbytes has it: blocks of means are rounded to 256 values each.

    Parameters of less than 4,096 numbers keep means in float32. It needs the package bitsandbytes.

    Args:
        betas: decay per step of the running means of the gradient and of its square.
        epsilon: added to the root of the latter.
    """

    updates_parts = False
    bytes_per_parameter = 2

    def __init__(self, betas: Betas = (0.9, 0.95), epsilon: Positive = 1e-8):
        self.betas, self.epsilon = tuple(betas), epsilon

    @classmethod
    def check_machine(cls) -> None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("adamw8bit needs the package bitsandbytes; type `pip install bitsandbytes`, or take adamw")

    def build(self, player: nn.Module, grouping: Grouping) -> torch.optim.Optimizer:
        self.check_machine()
        from bitsandbytes.optim import AdamW8bit as EightBit

        return EightBit(groups_of(trained(player), grouping), lr=0.0, betas=self.betas, eps=self.epsilon)
