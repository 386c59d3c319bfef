"""Stability: how much a code changes when its image is encoded again, or with noise."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.draws import Draws
from pipeline.features.passes import PerImage
from pipeline.features.summaries import mean
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.ranges import Number

NOISE = (30.0, 20.0, 10.0)


class Stability(TokenizerMetric):
    """Change of a code when it is encoded again from its reconstruction, and from its image with noise."""

    quantities = (
        Quantity(
            "ids_changed_{}",
            "Ids changed, {}",
            "lower",
            "fraction of the ids that differ from those of the image",
            "share",
        ),
        Quantity(
            "cosine_{}",
            "Code cosine, {}",
            "higher",
            "cosine similarity of a token's vector and that of the image's code, mean over tokens",
        ),
    )
    order = 500
    group = "Stability"

    def __init__(self, noise: tuple[Number, ...] = NOISE):
        self.noise = noise  # decibels of the image over the noise

    def rows(self, batch: EncodedImages) -> PerImage:
        rows = code_change("again", batch, batch.reconstructions)
        for decibel in self.noise:
            rows |= code_change(f"noise_{decibel:g}dB", batch, with_noise(batch.images, decibel, batch.draws))
        return rows

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        again = {"changed": "encoded, decoded to 8-bit pixels, encoded"} | inputs.of_images
        yield from self.changes(inputs, "again", "encode-decode-encode", again)
        for decibel in self.noise:
            noisy = {"changed": f"white noise {decibel:g} dB below the variance of the image's pixels, then encoded"}
            yield from self.changes(
                inputs, f"noise_{decibel:g}dB", f"noise at {decibel:g} dB", noisy | inputs.of_images
            )

    def changes(self, inputs: TokenizerInputs, name: str, title: str, protocol: dict[str, Any]) -> Measurements:
        for quantity, kind in zip(self.quantities, ("changed", "cosine")):
            if (rows := inputs.held_out.rows.get(f"{name}_{kind}")) is not None:
                titled = quantity.title.replace("{}", title)
                yield quantity.measurement(mean(rows), protocol, name, title=titled)

    def curves(self, inputs: TokenizerInputs) -> dict[str, Any]:
        rows, curves = inputs.held_out.rows, {}
        for kind in ("changed", "cosine"):
            if f"again_{kind}" in rows:
                curves[kind] = {f"{db:g}": rows[f"noise_{db:g}dB_{kind}"].mean().item() for db in sorted(self.noise)}
        return curves


def code_change(name: str, batch: EncodedImages, images: Tensor) -> PerImage:
    """How the code of `images` differs from that of the batch."""
    other = batch.encode(images)
    rows = {f"{name}_cosine": code_cosine(batch.code.z, other.z)}
    return rows if batch.code.ids is None else rows | {f"{name}_changed": ids_changed(batch.code.ids, other.ids)}


def ids_changed(first: Tensor, second: Tensor) -> Tensor:
    """Fraction of the ids [B, ...] of each image that differ, [B] float64."""
    return (first != second).flatten(1).cpu().double().mean(dim=1)


def code_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the angle between the vectors of each token of two codes [B, N, C], the mean over tokens, [B]."""
    return F.cosine_similarity(first.cpu().double(), second.cpu().double(), dim=-1).mean(dim=1)


def with_noise(images: Tensor, decibel: float, draws: Draws) -> Tensor:
    """Images [B, C, H, W] plus white Gaussian noise of so many decibels below the variance of each image's pixels."""
    variance = images.flatten(1).var(dim=1, unbiased=False)[:, None, None, None]
    scale = torch.sqrt(variance * 10 ** (-decibel / 10))
    return images + scale * draws.normal(f"noise {decibel:g} dB", tuple(images.shape[1:])).to(images)
