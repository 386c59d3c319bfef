"""Distance between pixels."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses.base import Loss
from pipeline.ranges import Positive
from pipeline.tokenizers.base import TokenizerOutput


class Pixel(Loss):
    """`pixel`: a mean over all pixels and colours of the absolute (l1) or squared (l2) difference d, one between, or
    Charbonnier's.

    `smooth_l1` is d^2 / 2 up to 1 and |d| - 1/2 above (Girshick, arXiv:1504.08083), Charbonnier's
    sqrt(d^2 + epsilon^2), l1 with a smooth bottom (Charbonnier et al., ICIP 1994; with epsilon 1e-3 by Lai et
    al., arXiv:1710.01992), which is `epsilon` where images are equal. `epsilon` is of `charbonnier` alone.
    """

    terms = ("pixel",)
    any_channels = True

    def __init__(self, norm: Literal["l1", "l2", "smooth_l1", "charbonnier"] = "l1", epsilon: Positive = 1e-3):
        super().__init__()
        self.norm, self.epsilon = norm, epsilon

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        difference = rebuilt.images.float() - images.float()
        if self.norm == "l1":
            return {"pixel": difference.abs().mean()}
        if self.norm == "smooth_l1":
            return {"pixel": F.smooth_l1_loss(difference, torch.zeros_like(difference))}
        squared = difference.square()
        return {"pixel": (squared if self.norm == "l2" else (squared + self.epsilon**2).sqrt()).mean()}
