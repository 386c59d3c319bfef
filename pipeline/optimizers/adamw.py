"""Adam with decoupled weight decay: the rule nearly all published trainings use."""

import torch

from pipeline.optimizers.base import OfMeans


class AdamW(OfMeans):
    """Loshchilov and Hutter, arXiv:1711.05101: a weight shrinks by rate times decay, apart from its gradient.

    Args:
        betas: decay per step of the running means of the gradient and of its square.
        epsilon: added to the root of the latter.
    """

    rule = torch.optim.AdamW
