"""Points and the nearest of some centres: assignment, sums of each cluster, k-means."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.nn.entropy import tokens_at_once


def distances(points: Tensor, centres: Tensor) -> Tensor:
    """|c|^2 - 2 x . c, [T, K] of points [T, C] and centres [K, C]: the squared distance up to a term of x alone."""
    return torch.addmm(centres.square().sum(dim=-1), points, centres.T, alpha=-2)


@torch.no_grad()
def nearest_centres(points: Tensor, centres: Tensor) -> Tensor:
    """The nearest of the centres [K, C] to each of the points [T, C], the first on ties: ids [T]."""
    parts = points.split(tokens_at_once(len(centres)))
    return torch.cat([distances(part, centres).argmin(dim=-1) for part in parts])


@torch.no_grad()
def nearest_points(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of the points [T, C] to each of the centres [K, C], the first on ties: squared distances, ids [K]."""
    parts = centres.split(tokens_at_once(len(points)))
    nearest = [distances(part, points).min(dim=-1) for part in parts]
    apart = torch.cat([values for values, _ in nearest]) + centres.square().sum(dim=-1)
    return apart, torch.cat([ids for _, ids in nearest])


@torch.no_grad()
def cluster_sums(points: Tensor, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """How many points [T, C] have each id [T], [count], and what they add up to, [count, C].

    Points are sorted by id and added in order, so that the sums are the same to the bit every time, on a GPU too.
    """
    counts = torch.zeros(count, dtype=torch.int64, device=ids.device).index_add_(0, ids, torch.ones_like(ids))
    return counts.to(points.dtype), torch.segment_reduce(points[ids.argsort(stable=True)], "sum", lengths=counts)


@torch.no_grad()
def k_means(points: Tensor, centres: Tensor, rounds: int, unit_norm: bool = False) -> Tensor:
    """Centres [K, C] after Lloyd's `rounds` from `centres`; one without points stays where it is.

    With `unit_norm`, points and centres are of length one (spherical k-means).
    """
    for _ in range(rounds):
        counts, sums = cluster_sums(points, nearest_centres(points, centres), len(centres))
        means = sums / counts.clamp_min(1)[:, None]
        if unit_norm:
            means = F.normalize(means, dim=-1)
        centres = torch.where(counts[:, None] > 0, means, centres)
    return centres
