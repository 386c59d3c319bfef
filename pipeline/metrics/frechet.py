"""Fréchet distance between two sets of features seen as Gaussians, from moments that can be merged."""

import torch
from torch import Tensor


class Moments:
    """Count, mean [D] and covariance [D, D] of the rows seen so far, in float64 (Chan, Golub and LeVeque, 1983).

    Rows may come in any batches, and moments of parts (batches, processes) merge into those of the whole.
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
        part = Moments(rows.shape[1])
        rows = rows.detach().to("cpu", torch.float64)
        part.count, part.mean = len(rows), rows.mean(dim=0)
        centred = rows - part.mean
        part.scatter = centred.T @ centred
        return self.merge(part)

    def merge(self, other: "Moments") -> "Moments":
        """Take in what `other` has seen."""
        total = self.count + other.count
        if total:
            apart = other.mean - self.mean
            self.scatter = self.scatter + other.scatter + torch.outer(apart, apart) * (self.count * other.count / total)
            self.mean = self.mean + apart * (other.count / total)
            self.count = total
        return self

    @property
    def covariance(self) -> Tensor:
        """[D, D], over count - 1; ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two rows or more, not {self.count}; evaluate more images")
        return self.scatter / (self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in squared units of the features (Heusel et al., arXiv:1706.08500).

    The trace of the root is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric: real,
    stable for singular covariances, and an order faster than a general matrix root.
    """
    values, vectors = torch.linalg.eigh(first.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root @ second.covariance @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = (first.mean - second.mean).square().sum()
    return (apart + first.covariance.trace() + second.covariance.trace() - 2 * overlap).item()
