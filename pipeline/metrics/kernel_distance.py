"""Kernel distance: the squared maximum mean discrepancy of features under a cubic polynomial kernel."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.features.neighbours import BLOCK, rows_of
from pipeline.metrics.base import FeatureMetric, Quantity


class KernelDistance(FeatureMetric):
    """Squared maximum mean discrepancy of features under a cubic polynomial kernel (arXiv:1801.01401)."""

    quantities = (
        Quantity(
            "kd_{}",
            "Kernel distance, {}",
            "lower",
            "squared discrepancy in a cubic polynomial kernel; 0 on average for equal distributions, and also negative",
        ),
    )
    fewest = 2  # whose pairs are compared
    order = 30

    def described(self) -> dict[str, Any]:
        return {"kernel": "(x.y / width + 1)^3, unbiased, all images at once"}

    def compare(self, samples: Tensor, real: Tensor) -> tuple[float, ...]:
        return (kernel_distance(samples, real),)


def kernel_distance(first: Tensor, second: Tensor, unbiased: bool = True) -> float:
    """Squared discrepancy of rows [m, D] and [n, D] under (x . y / D + 1)^3 (Binkowski et al., arXiv:1801.01401).

    Unbiased, the pairs of a row with itself are left out: its mean over draws is zero for equal distributions, so that
    single values may be negative. float64, in blocks.
    """
    first, second = first.double(), second.double()
    within = mean_within(first, unbiased) + mean_within(second, unbiased)
    return within - 2 * kernel_sum(first, second) / (len(first) * len(second))


def kernel_distance_subsets(
    first: Tensor, second: Tensor, subsets: int, size: int, seed: int = 2020
) -> tuple[float, float]:
    """Mean and population std of the unbiased distance over random subsets of `size` rows of each, as published KIDs.

    The draws are those of torch-fidelity: numpy's RandomState(seed), the rows of `first` before those of `second`.
    """
    random = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        chosen = [torch.from_numpy(random.choice(len(rows), size, replace=False)) for rows in (first, second)]
        values.append(kernel_distance(first[chosen[0]], second[chosen[1]]))
    return float(np.mean(values)), float(np.std(values))


def polynomial(first: Tensor, second: Tensor) -> Tensor:
    """(x . y / D + 1)^3 of every pair, [m, n]."""
    return (first @ second.T / first.shape[1] + 1) ** 3


def kernel_sum(first: Tensor, second: Tensor) -> float:
    """The sum of the kernel over all pairs, some rows of `first` at a time."""
    blocks = first.split(rows_of(BLOCK, len(second)))
    return sum(polynomial(block, second).sum().item() for block in blocks)


def mean_within(rows: Tensor, unbiased: bool) -> float:
    """The mean of the kernel over the pairs of rows [n, D], without those of a row and itself when unbiased."""
    total, count = kernel_sum(rows, rows), len(rows)
    if not unbiased:
        return total / count**2
    themselves = ((rows.square().sum(dim=1) / rows.shape[1] + 1) ** 3).sum().item()
    return (total - themselves) / (count * (count - 1))
