"""A convolution over a sequence whose kernel is divided by its largest singular value."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.nn.full_precision import full_precision

EPSILON = 1e-12


class SpectralConv1d(nn.Conv1d):
    """Maps [B, inputs, N] to [B, outputs, N], the sequence closed to a ring: Miyato et al., arXiv:1802.05957.

    The largest singular value of the kernel, as a matrix [outputs, inputs * kernel], is that of a power iteration. Its
    left vector `direction` [outputs] is updated in passes that train the weights, and in no other.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, padding_mode="circular")
        self.register_buffer("direction", F.normalize(torch.randn(outputs), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):  # a half-precision norm would be a few per cent off
            left, right = self._singular()
            if self.training and self.weight.requires_grad:
                self.direction.copy_(left)
            weight = self.weight / (left @ self.weight.flatten(1) @ right)
        return self._conv_forward(x, weight, self.bias)

    @torch.no_grad()
    def _singular(self) -> tuple[Tensor, Tensor]:
        """One step towards the left and right vectors of the largest singular value."""
        matrix = self.weight.flatten(1)
        right = F.normalize(self.direction @ matrix, dim=0, eps=EPSILON)
        return F.normalize(matrix @ right, dim=0, eps=EPSILON), right
