"""MS-SSIM: how well contrast and structure of reconstructions agree with their images at several scales."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.features.passes import PerImage
from pipeline.features.summaries import mean
from pipeline.images.eight_bits import levels
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.structural_similarity import similarity

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # fine to coarse


class MSSSIM(TokenizerMetric):
    """Multi-scale structural similarity of 8-bit reconstructions."""

    quantities = (
        Quantity(
            "ms_ssim",
            "MS-SSIM",
            "higher",
            "agreement of contrast and structure at several scales; 1 is equality",
        ),
    )
    order = 100
    group = "Reconstructions"

    def rows(self, batch: EncodedImages) -> PerImage:
        return {"ms_ssim": ms_ssim(levels(batch.images.cpu()), levels(batch.reconstructions.cpu()))}

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        where = {
            "scales": f"{scales(min(inputs.image_shape[1:]))} of {len(SCALE_WEIGHTS)}",
            "pixels": "rounded to 8 bits",
        }
        yield self.quantities[0].measurement(mean(inputs.held_out.rows["ms_ssim"]), where | inputs.of_images)


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
