"""Adam with decoupled weight decay: the rule nearly all published trainings use."""

import torch
from torch import nn

from pipeline.optimizers.base import Betas, Decay, Optimizer, groups_of, trained
from pipeline.ranges import Positive


class AdamW(Optimizer):
    """Loshchilov and Hutter, arXiv:1711.05101: a weight shrinks by rate times decay, apart from its gradient.

    Args:
        betas: decay per step of the running means of the gradient and of its square.
        epsilon: added to the root of the latter.
    """

    def __init__(self, betas: Betas = (0.9, 0.95), epsilon: Positive = 1e-8):
        self.betas, self.epsilon = tuple(betas), epsilon

    def build(self, player: nn.Module, decay: Decay) -> torch.optim.Optimizer:
        groups = groups_of(trained(player), decay)
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, eps=self.epsilon, fused=True)
