"""Density and coverage: how crowded with real images samples are, and how many real images have a sample near."""

from typing import Any

import torch
from torch import Tensor

from pipeline.features.neighbours import inside, radii
from pipeline.metrics.base import FeatureMetric, Quantity

NEIGHBOURS = 5  # as published


class DensityCoverage(FeatureMetric):
    """Density and coverage by the nearest neighbours of real images (arXiv:2002.09797)."""

    quantities = (
        Quantity(
            "density_{}",
            "Density, {}",
            "higher",
            "how densely real images surround the samples; 1 on average for equal distributions",
        ),
        Quantity(
            "coverage_{}",
            "Coverage, {}",
            "higher",
            "fraction of real images with a sample nearer than their fifth nearest real image",
            "share",
        ),
    )
    fewest = NEIGHBOURS + 1
    order = 60

    def described(self) -> dict[str, Any]:
        return {"neighbours": NEIGHBOURS}

    def compare(self, samples: Tensor, real: Tensor) -> tuple[float, ...]:
        return density_coverage(samples, real, NEIGHBOURS)


def density_coverage(samples: Tensor, real: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Of feature rows [m, D] and [n, D] (Naeem et al., arXiv:2002.09797, equations 3 and 4).

    A real row's ball reaches to its `neighbours`-th nearest other real row, which itself lies outside. Density: balls
    that hold a sample, in the mean over samples, over `neighbours`; 1 on average for equal distributions, and not
    bounded by it. Coverage: the share of balls that hold a sample. Raises ValueError for fewer rows than needed.
    """
    held, covered = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for block in inside(samples, real, radii(real, neighbours), rim=False):
        held += block.sum().item()
        covered |= block.any(dim=0)
    return held / (neighbours * len(samples)), covered.double().mean().item()
