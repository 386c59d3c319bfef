"""Batch normalisation of tokens without a scale or shift of its own; its running statistics are the scale of a code."""

import torch
from torch import Tensor, nn

from pipeline.nn.processes import sum_over_processes


class RunningNorm(nn.Module):
    """Tokens [B, N, C] to zero mean and unit variance per channel, over images and positions.

    Ioffe and Szegedy, arXiv:1502.03167, without the affine map. In evaluation mode by the running statistics, a fixed
    map through which gradients pass. In training by those of the batch, all processes' together, which also move the
    running ones by `momentum`; then no gradient passes. With accumulation each micro-batch is a batch.

    Args:
        mean, std: [C], what the running statistics begin with.
        epsilon: added to every variance.
    """

    def __init__(self, mean: Tensor, std: Tensor, epsilon: float = 1e-4, momentum: float = 0.1):
        super().__init__()
        self.epsilon, self.momentum = epsilon, momentum
        self.register_buffer("mean", mean.float().clone())
        self.register_buffer("variance", std.float().square())

    @property
    def std(self) -> Tensor:
        """[C], what evaluation divides by: z * std + mean is the inverse of it."""
        return (self.variance + self.epsilon).sqrt()

    def forward(self, z: Tensor) -> Tensor:
        if not self.training:
            return (z.float() - self.mean) / self.std
        with torch.no_grad():
            mean, variance, count = statistics(z.float())
            self.mean.lerp_(mean, self.momentum)
            self.variance.lerp_(variance * count / (count - 1), self.momentum)  # the unbiased estimate
            return (z.float() - mean) / (variance + self.epsilon).sqrt()


def statistics(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance [C] of z [B, N, C] over images and positions of all processes, and how many these are."""
    positions = z.flatten(0, -2)
    count = sum_over_processes(positions.new_tensor(float(len(positions))))
    mean = sum_over_processes(positions.sum(0)) / count
    return mean, sum_over_processes((positions - mean).square().sum(0)) / count, count
