"""Distance between pixels."""

from typing import Literal

from torch import Tensor

from pipeline.losses.base import Loss
from pipeline.ranges import Positive
from pipeline.tokenizers.base import TokenizerOutput


class Pixel(Loss):
    """`pixel`: a mean over all pixels and colours of the absolute (l1) or squared (l2) difference d, or Charbonnier's.

    That is sqrt(d^2 + epsilon^2), l1 with a smooth bottom (Charbonnier et al., ICIP 1994; with epsilon 1e-3 by Lai et
    al., arXiv:1710.01992), which is `epsilon` where images are equal. `epsilon` is of `charbonnier` alone.
    """

    terms = ("pixel",)
    any_channels = True

    def __init__(self, norm: Literal["l1", "l2", "charbonnier"] = "l1", epsilon: Positive = 1e-3):
        super().__init__()
        self.norm, self.epsilon = norm, epsilon

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        difference = rebuilt.images.float() - images.float()
        if self.norm == "l1":
            return {"pixel": difference.abs().mean()}
        squared = difference.square()
        return {"pixel": (squared if self.norm == "l2" else (squared + self.epsilon**2).sqrt()).mean()}
