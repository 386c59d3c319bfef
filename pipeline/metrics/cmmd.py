"""CMMD: the maximum mean discrepancy of CLIP's image embeddings under a Gaussian kernel."""

from typing import Any

import torch
from torch import Tensor

from pipeline.metrics.base import FeatureMetric, Quantity

BANDWIDTH, SCALE = 10.0, 1000.0  # of the paper; the scale only makes values easier to read


class CMMD(FeatureMetric):
    """Maximum mean discrepancy of CLIP's embeddings under a Gaussian kernel (arXiv:2401.09603)."""

    quantities = (
        Quantity(
            "cmmd_{}",
            "CMMD",
            "lower",
            "squared maximum mean discrepancy of embeddings of unit length in a Gaussian kernel; 0 for equal sets",
        ),
    )
    order = 40
    only = ("clip",)

    def described(self) -> dict[str, Any]:
        return {"kernel": f"exp(-|x - y|^2 / (2 {BANDWIDTH:g}^2)), biased, times {SCALE:g}"}

    def compare(self, samples: Tensor, real: Tensor) -> tuple[float, ...]:
        return (cmmd(samples, real),)


def cmmd(first: Tensor, second: Tensor) -> float:
    """SCALE times the squared discrepancy of rows [m, D] and [n, D] (Jayasumana et al., arXiv:2401.09603).

    Rows are brought to unit length, the kernel is exp(-|x - y|^2 / (2 BANDWIDTH^2)), and the pairs of a row with itself
    are counted, which makes it zero for equal sets and never less. float64, in blocks.
    """
    first, second = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (first, second))
    return SCALE * (mean_kernel(first, first) + mean_kernel(second, second) - 2 * mean_kernel(first, second)).item()


def mean_kernel(first: Tensor, second: Tensor, rows: int = 1024) -> Tensor:
    """The mean over all pairs of unit rows, whose squared distance is 2 - 2 x . y."""
    total = sum(torch.exp((block @ second.T - 1) / BANDWIDTH**2).sum() for block in first.split(rows))
    return total / (len(first) * len(second))
