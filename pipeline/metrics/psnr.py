"""PSNR: how far reconstructions are from their images, pixel by pixel."""

import torch
from torch import Tensor

from pipeline.features.passes import PerImage
from pipeline.features.summaries import mean
from pipeline.images.eight_bits import levels
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric

CEILING = 100.0  # dB, for an image that is reconstructed exactly


class PSNR(TokenizerMetric):
    """Peak signal-to-noise ratio of 8-bit reconstructions."""

    quantities = (
        Quantity(
            "psnr",
            "PSNR",
            "higher",
            "peak signal-to-noise ratio of reconstructions",
            "dB",
            headline=True,
        ),
    )
    order = 110
    group = report_group = "Reconstructions"

    def rows(self, batch: EncodedImages) -> PerImage:
        first, second = levels(batch.images.cpu()), levels(batch.reconstructions.cpu())
        return {"psnr": psnr(first, second).clamp(max=CEILING)}

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        average = f"over images, each at most {CEILING:g} dB"
        where = {"pixels": "rounded to 8 bits", "average": average} | inputs.of_reconstructions
        yield self.quantities[0].measurement(mean(inputs.held_out.rows["psnr"]), where)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every pair of images [B, C, H, W] in [0, 255], [B] in dB; infinite where equal."""
    error = (first - second).double().square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error)
