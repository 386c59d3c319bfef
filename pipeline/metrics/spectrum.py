"""Power of images by spatial frequency, whatever the direction."""

import torch
from torch import Tensor


def radial_power(images: Tensor) -> Tensor:
    """Mean power of the frequencies of about k cycles an image, k = 0 ... S // 2, of [B, C, S, S]: [B, S // 2 + 1].

    float64. Orthonormal: white noise of variance v has v everywhere. Mean over channels and directions; what lies in
    the corners beyond the highest k is left out.
    """
    size = images.shape[-1]
    power = torch.fft.fft2(images.double(), norm="ortho").abs().square().mean(dim=1)  # [B, S, S]
    rings = radii(size).to(images.device)
    inside = rings <= size // 2
    sums = power.new_zeros(len(images), size // 2 + 1).index_add_(1, rings[inside], power[:, inside])
    return sums / rings[inside].bincount(minlength=size // 2 + 1)


def radii(size: int) -> Tensor:
    """Cycles an image of every frequency of a transform, rounded, [size, size] int64."""
    cycles = torch.fft.fftfreq(size, dtype=torch.float64) * size
    return torch.hypot(cycles[:, None], cycles[None, :]).round().long()
