"""CKNNA: whether two models find the same images near each other."""

import torch
from torch import Tensor
from torch.nn import functional as F

QUANTILE = 0.95  # of the absolute values, beyond which features are clipped


def neighbour_alignment(first: Tensor, second: Tensor, neighbours: int = 10) -> float:
    """Centred kernel alignment over mutual nearest neighbours, of rows [n, D] and [n, E] of the same images, float64.

    Huh et al., arXiv:2405.07987, appendix A, in the form that VFM-VAE uses (arXiv:2510.18457): rows clipped at the
    `QUANTILE` of their absolute values and brought to length 1, linear kernels, the unbiased HSIC over the pairs that
    are among the nearest `neighbours` of a row, itself not counted, in both. It is 1 for a set and itself, and about
    neighbours / (n - 1) for sets that have nothing to do with each other: so many of the pairs are mutual by chance.
    A set whose rows are all the same has no neighbours, and 0. Raises ValueError for n <= max(neighbours, 3).
    """
    if len(first) <= max(neighbours, 3):
        raise ValueError(f"CKNNA of {neighbours} neighbours needs more than {len(first)} images; evaluate more")
    if any((rows == rows[0]).all() for rows in (first, second)):
        return 0.0
    one, other = kernel(first), kernel(second)
    near_one, near_other = nearest(one, neighbours), nearest(other, neighbours)
    both = near_one & near_other
    scale = hsic(one * near_one, one * near_one) * hsic(other * near_other, other * near_other)
    return hsic(one * both, other * both) / scale**0.5


def kernel(rows: Tensor) -> Tensor:
    """Inner products [n, n] of the rows, clipped and of length 1."""
    rows = rows.double()
    values = rows.abs().flatten()
    limit = values.kthvalue(max(1, round(QUANTILE * len(values)))).values.item()
    rows = F.normalize(rows.clamp(-limit, limit), dim=1)
    return rows @ rows.T


def nearest(products: Tensor, neighbours: int) -> Tensor:
    """Which columns of [n, n] are among the largest `neighbours` of their row, the diagonal left out: [n, n] bool."""
    others = products.clone().fill_diagonal_(-torch.inf)
    return torch.zeros_like(products, dtype=torch.bool).scatter_(1, others.topk(neighbours).indices, True)


def hsic(first: Tensor, second: Tensor) -> float:
    """The unbiased estimate of Song et al., 2012 (JMLR 13), equation 5, of any kernels [n, n], symmetric or not."""
    n = len(first)
    first, second = (matrix.clone().fill_diagonal_(0) for matrix in (first, second))
    trace = (first * second.T).sum()
    means = first.sum() * second.sum() / ((n - 1) * (n - 2))
    cross = first.sum(dim=0) @ second.sum(dim=1) * 2 / (n - 2)
    return ((trace + means - cross) / (n * (n - 3))).item()
