"""What the values of a continuous code look like: its channels' moments."""

import torch
from torch import Tensor


def channel_moments(z: Tensor) -> dict[str, Tensor]:
    """`mean`, `std` and `excess` kurtosis [C] in float64, over images and tokens, of codes [B, N, C].

    The excess kurtosis is 0 for a normal distribution, -1.2 for a uniform one, and nan for a constant channel.
    """
    rows = z.double().flatten(0, 1)
    mean = rows.mean(dim=0)
    squares = (rows - mean).square()
    variance = squares.mean(dim=0)
    return {"mean": mean, "std": variance.sqrt(), "excess": squares.square().mean(dim=0) / variance.square() - 3}


def used_dimensions(z: Tensor) -> float:
    """How many channels of [B, N, C] vary on their own: (sum of v)^2 / sum of v^2, v the covariance's eigenvalues.

    It is C where all channels vary alike and independently, 1 where they differ by factors, 0 where none varies.
    """
    covariance = torch.atleast_2d(torch.cov(z.double().flatten(0, 1).T))
    values = torch.linalg.eigvalsh(covariance).clamp(min=0)
    return (values.sum().square() / values.square().sum()).item() if values.any() else 0.0
