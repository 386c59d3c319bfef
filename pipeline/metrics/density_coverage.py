"""Density and coverage: how crowded with real images samples are, and how many real images have a sample near."""

import torch
from torch import Tensor

from pipeline.metrics.base import blocks, radii


def density_coverage(samples: Tensor, real: Tensor, neighbours: int = 5) -> tuple[float, float]:
    """Of feature rows [m, D] and [n, D] (Naeem et al., arXiv:2002.09797, equations 3 and 4).

    A real row's ball reaches to its `neighbours`-th nearest other real row, which itself lies outside. Density: balls
    that hold a sample, in the mean over samples, over `neighbours`; 1 on average for equal distributions, and not
    bounded by it. Coverage: the share of balls that hold a sample. Raises ValueError for fewer rows than needed.
    """
    reach, inside, nearest = radii(real, neighbours), 0, torch.full((len(real),), torch.inf, dtype=torch.float64)
    for part in blocks(samples, real):
        part = part.cpu()
        inside += (part < reach.cpu()).sum().item()
        nearest = torch.minimum(nearest, part.amin(dim=0))
    return inside / (neighbours * len(samples)), (nearest < reach.cpu()).double().mean().item()
