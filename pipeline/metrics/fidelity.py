"""How near a reconstruction is to its image: PSNR, SSIM and MS-SSIM of 8-bit pixels."""

import torch
from torch import Tensor
from torch.nn import functional as F

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
    luminance, structure = similarity(first, second, window, sigma)
    return (luminance * structure).mean(dim=(1, 2, 3))


def ms_ssim(first: Tensor, second: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Multi-scale structural similarity of every pair of images [B, C, H, W] in [0, 255], [B], from 0 to 1.

    Wang, Simoncelli and Bovik, 2003: each scale halves the image by means of 2 x 2; all give contrast-structure, the
    coarsest also luminance. Of the five scales those that the window fits are taken, see `scales`, with their weights
    again summing to 1; with a single one it is SSIM. Negative means count as 0.
    """
    count = scales(min(first.shape[2:]), window)
    weights = torch.tensor(SCALE_WEIGHTS[:count], dtype=torch.float64, device=first.device)
    means = []
    for scale in range(count):
        if scale:
            first, second = F.avg_pool2d(first.double(), 2), F.avg_pool2d(second.double(), 2)
        luminance, structure = similarity(first, second, window, sigma)
        means.append((luminance * structure if scale == count - 1 else structure).mean(dim=(2, 3)))  # [B, C]
    return (torch.stack(means, dim=-1).clamp(min=0) ** (weights / weights.sum())).prod(dim=-1).mean(dim=1)


def scales(side: int, window: int = 11) -> int:
    """How many of the five scales of MS-SSIM fit a shorter side of `side`: all from 16 windows on, 1 at least."""
    return max(1, sum(side // 2**scale >= window for scale in range(len(SCALE_WEIGHTS))))


def similarity(first: Tensor, second: Tensor, window: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure of every place of images [B, C, H, W], each [B, C, h, w] in float64."""
    first, second = first.double(), second.double()
    fitting = min(window, *(side - 1 + side % 2 for side in first.shape[2:]))
    weights = gaussian(fitting, sigma).to(first)

    def local(images: Tensor) -> Tensor:
        """Means under the window, [B, C, H - fitting + 1, W - fitting + 1]."""
        channels = images.shape[1]
        down = F.conv2d(images, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(down, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_1, mean_2 = local(first), local(second)
    variance_1, variance_2 = local(first * first) - mean_1**2, local(second * second) - mean_2**2
    covariance = local(first * second) - mean_1 * mean_2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1**2 + mean_2**2 + c1)
    return luminance, (2 * covariance + c2) / (variance_1 + variance_2 + c2)


def gaussian(size: int, sigma: float) -> Tensor:
    """[size] weights that sum to 1, float64."""
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    return weights / weights.sum()
