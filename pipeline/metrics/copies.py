"""Whether samples repeat training images: how near they come to one, against how near new real images come."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.metrics.base import blocks


@dataclass(frozen=True)
class Copies:
    """A sample is a near copy when it lies closer to some training image than 99 % of new real images do to any."""

    share: float  # of the samples that are near copies
    share_held_out: float  # of the held-out images: about the quantile that draws the line
    threshold: float  # the distance at that line
    median: float  # a sample's distance to its nearest training image
    median_held_out: float


def near_copies(samples: Tensor, held_out: Tensor, train: Tensor, quantile: float = 0.01) -> Copies:
    """Compare nearest-neighbour distances of rows [m, D] and [n, D] to the rows [k, D] of the training split.

    The line is the `quantile` of the held-out distances (the lower of the two observed ones next to it).
    """
    near, real = nearest(samples, train), nearest(held_out, train)
    threshold = torch.quantile(real, quantile, interpolation="lower")
    return Copies(
        share=(near < threshold).double().mean().item(),
        share_held_out=(real < threshold).double().mean().item(),
        threshold=threshold.item(),
        median=near.median().item(),
        median_held_out=real.median().item(),
    )


def nearest(rows: Tensor, among: Tensor) -> Tensor:
    """Root-mean-square difference of each row [m, D] to the nearest of [k, D], [m] in float64."""
    return torch.cat([part.min(dim=1).values for part in blocks(rows, among)]) / rows.shape[1] ** 0.5
