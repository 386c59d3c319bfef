"""Kernel distance: the squared maximum mean discrepancy of features under a cubic polynomial kernel."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

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
    single values may be negative. float64.
    """
    first, second = first.double(), second.double()
    within = _mean(polynomial(first, first), unbiased) + _mean(polynomial(second, second), unbiased)
    return (within - 2 * polynomial(first, second).mean()).item()


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


def _mean(kernel: Tensor, unbiased: bool) -> Tensor:
    """The mean entry of a square kernel matrix, without its diagonal when unbiased."""
    if not unbiased:
        return kernel.mean()
    rows = len(kernel)
    return (kernel.sum() - kernel.trace()) / (rows * (rows - 1))
