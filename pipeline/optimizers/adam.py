"""Adam, whose weight decay, where there is any, is a part of the gradient."""

import torch
from torch import nn

from pipeline.optimizers.base import Betas, Decay, Optimizer, groups_of, trained
from pipeline.ranges import Positive


class Adam(Optimizer):
    """Kingma and Ba, arXiv:1412.6980. Decay adds its multiple of the weight to the gradient (L2), before the means.

    Without decay it is AdamW to the bit.

    Args:
        betas: decay per step of the running means of the gradient and of its square.
        epsilon: added to the root of the latter.
    """

    def __init__(self, betas: Betas = (0.9, 0.95), epsilon: Positive = 1e-8):
        self.betas, self.epsilon = tuple(betas), epsilon

    def build(self, player: nn.Module, decay: Decay) -> torch.optim.Optimizer:
        groups = groups_of(trained(player), decay)
        return torch.optim.Adam(groups, lr=0.0, betas=self.betas, eps=self.epsilon, fused=True)
