"""Adam, whose weight decay, where there is any, is a part of the gradient."""

import torch

from pipeline.optimizers.base import OfMeans


class Adam(OfMeans):
    """Kingma and Ba, arXiv:1412.6980. Decay adds its multiple of the weight to the gradient (L2), before the means.

    Without decay it is AdamW to the bit.

    Args:
        betas: decay per step of the running means of the gradient and of its square.
        epsilon: added to the root of the latter.
    """

    rule = torch.optim.Adam
