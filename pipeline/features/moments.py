"""Fréchet distance between two sets of features seen as Gaussians, from moments that can be merged."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """A mean [D] and a covariance [D, D] in float64, of rows that are not at hand."""

    mean: Tensor
    covariance: Tensor


class Moments:
    """Count, mean [D] and covariance [D, D] of the rows seen so far, in float64 (Chan, Golub and LeVeque, 1983).

    Rows may come in any batches, and moments of parts (batches, processes) merge into those of the whole. The memory
    they take does not depend on how many rows there were.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)  # sum of (x - mean)(x - mean)^T

    @classmethod
    def of(cls, rows: Tensor) -> "Moments":
        """The moments of rows [n, D]."""
        return cls(rows.shape[1]).update(rows)

    def update(self, rows: Tensor) -> "Moments":
        """Take in rows [n, D]."""
        if len(rows) == 0:
            return self
        rows = rows.detach().cpu().double()
        mean = rows.mean(dim=0)
        # what the two means are apart enters as one row more, so that one product in place does all
        rows = torch.cat([rows - mean, self._step(len(rows), mean)[None]])
        self.scatter.addmm_(rows.T, rows)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Take in what `other` has seen."""
        if other.count:
            step = self._step(other.count, other.mean)
            self.scatter.add_(other.scatter).addr_(step, step)
        return self

    def _step(self, count: int, mean: Tensor) -> Tensor:
        """Move mean and count on by `count` rows of this mean; the row [D] for the scatter between the two."""
        total, apart = self.count + count, mean - self.mean
        step = apart * (self.count * count / total) ** 0.5
        self.mean, self.count = self.mean + apart * (count / total), total
        return step

    @property
    def covariance(self) -> Tensor:
        """[D, D], over count - 1; ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two rows or more, not {self.count}; evaluate more images")
        return self.scatter / (self.count - 1)


def frechet_distance(first: Gaussian | Moments, second: Gaussian | Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in squared units of the features (Heusel et al., arXiv:1706.08500).

    The trace of the root is the sum of the roots of the eigenvalues of R^T S2 R for any root R R^T = S1, which is
    symmetric: real, stable for singular covariances, and an order faster than a general matrix root.
    """
    one, two = first.covariance, second.covariance
    root = factor(one)
    product = root.T @ two @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = (first.mean - second.mean).square().sum()
    return (apart + one.trace() + two.trace() - 2 * overlap).item()


def factor(covariance: Tensor) -> Tensor:
    """R [D, rank] with R R^T = `covariance`: Cholesky's with pivots, which a singular covariance does not stop."""
    packed, order, rank, _ = lapack.dpstrf(covariance.numpy(), lower=1)
    root = np.zeros((len(packed), rank))
    root[order - 1] = np.tril(packed)[:, :rank]
    return torch.from_numpy(root)
