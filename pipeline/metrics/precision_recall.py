"""Improved precision and recall: how much of the samples looks real, and how much of the real is sampled."""

from typing import Any

import torch
from torch import Tensor

from pipeline.features.neighbours import inside, radii
from pipeline.metrics.base import FeatureMetric, Quantity
from pipeline.ranges import Count


class PrecisionRecall(FeatureMetric):
    """Improved precision and recall by nearest neighbours (arXiv:1904.06991)."""

    quantities = (
        Quantity(
            "precision_{}",
            "Precision, {}",
            "higher",
            "fraction of samples within the neighbourhoods of real images",
            "share",
        ),
        Quantity(
            "recall_{}", "Recall, {}", "higher", "fraction of real images within the neighbourhoods of samples", "share"
        ),
    )
    order = 50

    def __init__(self, neighbours: Count = 3):
        self.neighbours, self.fewest = neighbours, neighbours + 1

    def described(self) -> dict[str, Any]:
        return {"neighbours": self.neighbours}

    def compare(self, samples: Tensor, real: Tensor) -> tuple[float, ...]:
        return precision_recall(samples, real, self.neighbours)


def precision_recall(samples: Tensor, real: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Shares in [0, 1] for feature rows [m, D] and [n, D] (Kynkäänniemi et al., arXiv:1904.06991, equations 1 and 2).

    Precision: samples within the radius of at least one real row, which is its distance to its `neighbours`-th nearest
    other real row. Recall: the same with the roles exchanged. Raises ValueError for fewer rows than neighbours need.
    """
    return covered(samples, real, neighbours), covered(real, samples, neighbours)


def covered(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """Share of `points` [m, D] in the union of the balls round the rows of `manifold` [n, D]."""
    blocks = inside(points, manifold, radii(manifold, neighbours), rim=True)
    return torch.cat([block.any(dim=1) for block in blocks]).double().mean().item()
