"""The Haar transform of one level: an image as its local means and three bands of detail, and back."""

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
    return _hadamard(torch.stack([images[..., row::2, column::2] for row in (0, 1) for column in (0, 1)], dim=1))


def inverse_haar(bands: Tensor) -> Tensor:
    """Bands [B, 4, C, h, w] in the order of `BANDS` as images [B, C, 2h, 2w]: the inverse of `haar` for even sides."""
    return F.pixel_shuffle(_hadamard(bands).transpose(1, 2).flatten(1, 2), 2)


def _hadamard(parts: Tensor) -> Tensor:
    """The four of [B, 4, ...] times half the Hadamard matrix, which is its own inverse; of pixels a b / c d, bands."""
    a, b, c, d = parts.unbind(1)
    return torch.stack([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 2
