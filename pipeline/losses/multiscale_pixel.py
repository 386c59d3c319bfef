"""Distance between a tokenizer's images of smaller scales and the image at these scales."""

import torch.nn.functional as F
from torch import Tensor

from pipeline.losses.base import Loss
from pipeline.tokenizers.base import TokenizerOutput


class MultiscalePixel(Loss):
    """`multiscale_pixel`: a sum over scales of the mean absolute difference from the image, shrunk by area means.

    The scales are the tokenizer's feature `scales`: [B, 3, h, w], coarse to fine, without the image
    itself. VFM-VAE, arXiv:2510.18457, there with weight 0.1.
    """

    terms = ("multiscale_pixel",)
    of_pixels = False
    reads = ("scales",)

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        errors = [
            (smaller.float() - F.adaptive_avg_pool2d(images.float(), smaller.shape[2:])).abs().mean()
            for smaller in rebuilt.features["scales"]
        ]
        return {"multiscale_pixel": sum(errors)}
