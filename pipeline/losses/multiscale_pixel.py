"""Distance between a tokenizer's images of smaller scales and the image at these scales."""

import torch.nn.functional as F
from torch import Tensor

from pipeline.losses.base import Loss
from pipeline.nn.map_transform import Filter
from pipeline.ranges import NotNegative
from pipeline.tokenizers.base import TokenizerOutput


class MultiscalePixel(Loss):
    """`multiscale_pixel`: a sum over scales of the mean absolute difference from the image, shrunk with antialiasing.

    The scales are the tokenizer's feature `scales`: [B, 3, h, w], coarse to fine, without the image itself. `weights`
    are theirs from the largest one, those that are not given 0; null: 1 for each. VFM-VAE, arXiv:2510.18457.
    """

    terms = ("multiscale_pixel",)
    of_pixels = False
    rebuilds = True
    reads = ("scales",)

    def __init__(self, weights: list[NotNegative] | None = None, filter: Filter = "bilinear"):
        super().__init__()
        self.weights, self.filter = weights, filter

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        made = rebuilt.features["scales"][::-1]
        weights = [1.0] * len(made) if self.weights is None else self.weights
        errors = [weight * self.error(smaller.float(), images.float()) for weight, smaller in zip(weights, made)]
        return {"multiscale_pixel": sum(errors) + 0.0 * sum(smaller.sum() for smaller in made[len(errors) :])}

    def error(self, smaller: Tensor, images: Tensor) -> Tensor:
        target = F.interpolate(images, smaller.shape[2:], mode=self.filter, antialias=True)
        return (smaller - target).abs().mean()
