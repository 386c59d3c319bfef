"""Luminance, contrast and structure of images under a window: what SSIM and MS-SSIM are made of."""

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5  # pixels, of Wang et al., 2004


def structural_similarity(
    first: Tensor, second: Tensor, peak: float, window: int = WINDOW, sigma: float = SIGMA
) -> Tensor:
    """SSIM of every pair of images [B, C, H, W] in [0, `peak`], [B], at most 1, a mean over positions and channels.

    Wang, Bovik, Sheikh and Simoncelli, 2004. It is computed in the images' own precision and has a gradient at both.
    """
    luminance, structure = similarity(first, second, peak, window, sigma)
    return (luminance * structure).mean(dim=(1, 2, 3))


def similarity(
    first: Tensor, second: Tensor, peak: float, window: int = WINDOW, sigma: float = SIGMA
) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure of images [B, C, H, W] in [0, `peak`], each [B, C, h, w].

    A Gaussian window at all positions where it fits, K = (0.01, 0.03). For smaller images it is the largest odd window
    that fits, its weights again summing to 1.
    """
    fitting = min(window, *(side - 1 + side % 2 for side in first.shape[2:]))
    weights = gaussian(fitting, sigma).to(first)

    def window_mean(images: Tensor) -> Tensor:
        """Means under the window, [B, C, H - fitting + 1, W - fitting + 1]."""
        channels = images.shape[1]
        down = F.conv2d(images, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(down, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_1, mean_2 = window_mean(first), window_mean(second)
    variance_1, variance_2 = window_mean(first * first) - mean_1**2, window_mean(second * second) - mean_2**2
    covariance = window_mean(first * second) - mean_1 * mean_2
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1**2 + mean_2**2 + c1)
    return luminance, (2 * covariance + c2) / (variance_1 + variance_2 + c2)


def gaussian(size: int, sigma: float) -> Tensor:
    """[size] weights that sum to 1, float64."""
    positions = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-0.5 * (positions / sigma) ** 2)
    return weights / weights.sum()
