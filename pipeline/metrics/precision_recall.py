"""Improved precision and recall: how much of the samples looks real, and how much of the real is sampled."""

import torch
from torch import Tensor

from pipeline.metrics.base import blocks, radii


def precision_recall(samples: Tensor, real: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Shares in [0, 1] for feature rows [m, D] and [n, D] (Kynkäänniemi et al., arXiv:1904.06991, equations 1 and 2).

    Precision: samples within the radius of at least one real row, which is its distance to its `neighbours`-th nearest
    other real row. Recall: the same with the roles exchanged. Raises ValueError for fewer rows than neighbours need.
    """
    return covered(samples, real, neighbours), covered(real, samples, neighbours)


def covered(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """Share of `points` [m, D] in the union of the balls round the rows of `manifold` [n, D]."""
    reach = radii(manifold, neighbours)
    return torch.cat([(part <= reach).any(dim=1) for part in blocks(points, manifold)]).double().mean().item()
