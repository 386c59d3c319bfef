"""How near a reconstruction is to its image: PSNR, SSIM and MS-SSIM of 8-bit pixels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.nn.structural_similarity import similarity, structural_similarity

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, fine to coarse


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every pair of images [B, C, H, W] in [0, 255], [B] in dB; infinite where equal."""
    error = (first - second).double().square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def ssim(first: Tensor, second: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of every pair of images [B, C, H, W] in [0, 255], [B], at most 1 (Wang et al., 2004).

    Gaussian window of 11 pixels and sigma 1.5, K = (0.01, 0.03), places where the window fits, mean over places and
    channels. On images smaller than the window it is the largest odd window that fits, its weights again summing to 1.
    """
    return structural_similarity(first.double(), second.double(), 255, window, sigma)


def ms_ssim(first: Tensor, second: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Multi-scale structural similarity of every pair of images [B, C, H, W] in [0, 255], [B], from 0 to 1.

    Wang, Simoncelli and Bovik, 2003: each scale halves the image by means of 2 x 2; all give contrast-structure, the
    coarsest also luminance. Of the five scales those that the window fits are taken, see `scales`, with their weights
    again summing to 1; with a single one it is SSIM. Negative means count as 0.
    """
    count = scales(min(first.shape[2:]), window)
    weights = torch.tensor(SCALE_WEIGHTS[:count], dtype=torch.float64, device=first.device)
    first, second, means = first.double(), second.double(), []
    for scale in range(count):
        if scale:
            first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
        luminance, structure = similarity(first, second, 255, window, sigma)
        means.append((luminance * structure if scale == count - 1 else structure).mean(dim=(2, 3)))  # [B, C]
    return (torch.stack(means, dim=-1).clamp(min=0) ** (weights / weights.sum())).prod(dim=-1).mean(dim=1)


def scales(side: int, window: int = 11) -> int:
    """How many of the five scales of MS-SSIM fit a shorter side of `side`: all from 16 windows on, 1 at least."""
    return max(1, sum(side // 2**scale >= window for scale in range(len(SCALE_WEIGHTS))))
