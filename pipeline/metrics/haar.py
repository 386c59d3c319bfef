"""Where in frequency a reconstruction errs: the four bands of a one-level Haar transform."""

import torch
from torch import Tensor
from torch.nn import functional as F

BANDS = ("LL", "LH", "HL", "HH")  # low or high, first across the image, then down it


def haar(images: Tensor) -> Tensor:
    """Images [B, C, H, W] as bands [B, 4, C, H/2, W/2] in the order of `BANDS`; an odd side is continued by zeros.

    Orthonormal: the squares of all coefficients sum to those of the pixels. The published form of Medi et al.,
    arXiv:2509.05441, divides by 2 once more.
    """
    height, width = images.shape[2:]
    images = F.pad(images, (0, width % 2, 0, height % 2))
    a, b, c, d = (images[..., row::2, column::2] for row in (0, 1) for column in (0, 1))  # of every square a b / c d
    return torch.stack([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 2


def band_power(images: Tensor) -> Tensor:
    """Mean square of the coefficients of every band, [B, 4] in float64; their mean is that of the pixels."""
    return haar(images.double()).square().mean(dim=(2, 3, 4))
