"""Residual spectrum: the power of image minus reconstruction by spatial frequency."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.features.passes import PerImage
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric


class ResidualSpectrum(TokenizerMetric):
    """Power of the residual relative to that of the images in the highest octave of frequencies."""

    quantities = (
        Quantity(
            "residual_top_octave",
            "Residual, top octave",
            "lower",
            "power of the residual relative to that of the images, at the frequencies of the highest octave",
        ),
    )
    order = 210
    group = "Frequencies"

    def rows(self, batch: EncodedImages) -> PerImage:
        residual = batch.images - batch.reconstructions
        return {"residual": radial_power(residual), "power": radial_power(batch.images)}

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        residual, power = (inputs.held_out.rows[name].mean(dim=0) for name in ("residual", "power"))
        top = slice((len(power) - 1) // 2 + 1, None)
        where = {"transform": "Fourier, means over directions", "pixels": "in [-1, 1]"} | inputs.of_images
        shown = [k for k in marks(len(power)) if power[k] > 0]
        details = {f"at_{k}_cycles_an_image": (residual[k] / power[k]).item() for k in shown}
        value = (residual[top].sum() / power[top].sum()).item()
        yield self.quantities[0].measurement(value, where, details=details)

    def curves(self, inputs: TokenizerInputs) -> dict[str, Any]:
        return {name: inputs.held_out.rows[name].mean(dim=0).tolist() for name in ("power", "residual")}


def marks(bins: int) -> list[int]:
    """0, 1, 2, 4, ... and the last of so many frequencies."""
    powers = [2**i for i in range(bins.bit_length()) if 2**i < bins - 1]
    return [0, *powers, bins - 1]


def radial_power(images: Tensor) -> Tensor:
    """Mean power of the frequencies of about k cycles per shorter side S, k = 0 ... S // 2, of [B, C, H, W].

    [B, S // 2 + 1] in float64. Orthonormal: white noise of variance v has v everywhere. Mean over channels and
    directions; what lies in the corners beyond the highest k is left out.
    """
    size = min(images.shape[2:])
    power = torch.fft.fft2(images.cpu().double(), norm="ortho").abs().square().mean(dim=1)  # [B, H, W]
    rings = ring_numbers(images.shape[2:]).to(images.device)
    inside = rings <= size // 2
    sums = power.new_zeros(len(images), size // 2 + 1).index_add_(1, rings[inside], power[:, inside])
    return sums / rings[inside].bincount(minlength=size // 2 + 1)


def ring_numbers(sides: Sequence[int]) -> Tensor:
    """Cycles per shorter side of every frequency of a transform, rounded, [height, width] int64."""
    down, across = (torch.fft.fftfreq(side, dtype=torch.float64) * min(sides) for side in sides)
    return torch.hypot(down[:, None], across[None, :]).round().long()
