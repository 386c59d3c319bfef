"""Distance between images in frequency: local means apart from detail."""

from typing import Literal

from torch import Tensor

from pipeline.losses.base import Loss
from pipeline.nn.haar import haar
from pipeline.tokenizers.base import TokenizerOutput


class Wavelet(Loss):
    """`wavelet_low` and `wavelet_high`: the mean absolute (l1) or squared (l2) error of Haar coefficients, halved.

    Low is the band LL, the means of 2x2 pixels; high are LH, HL and HH together. FA-VAE's bands (Medi et al.,
    arXiv:2509.05441), whose coefficients are divided by 2 so that all lie in [-1, 1]. The gradient of each term lies
    wholly in its own bands. With l2, wavelet_low + 3 wavelet_high is the mean squared error of pixels.
    """

    terms = ("wavelet_low", "wavelet_high")
    any_channels = True

    def __init__(self, norm: Literal["l1", "l2"] = "l1"):
        super().__init__()
        self.norm = norm

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        error = haar(rebuilt.images.float() - images.float()) / 2  # [B, 4, C, h, w]
        error = error.abs() if self.norm == "l1" else error.square()
        return {"wavelet_low": error[:, :1].mean(), "wavelet_high": error[:, 1:].mean()}
