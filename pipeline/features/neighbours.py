"""Distances between all rows of features of two sets, and to each row's neighbours."""

from collections.abc import Iterator

import torch
from torch import Tensor


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances of all pairs [m, n], in float64 and by differences: equal rows are exactly 0 apart."""
    return torch.cdist(first.double(), second.double(), compute_mode="donot_use_mm_for_euclid_dist")


def blocks(first: Tensor, second: Tensor, rows: int = 1024) -> Iterator[Tensor]:
    """The distances of all pairs, some rows of `first` at a time: [rows, n]."""
    return (distances(block, second) for block in first.split(rows))


def radii(rows: Tensor, neighbours: int) -> Tensor:
    """[n]: each row's distance to its `neighbours`-th nearest other one; ValueError where there are too few."""
    if len(rows) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {len(rows)} rows; evaluate more images")
    # the nearest row of its own set is the row itself, hence the one more
    return torch.cat([block.kthvalue(neighbours + 1, dim=1).values for block in blocks(rows, rows)])
