"""A diagonal Gaussian posterior, pulled towards the standard normal."""

import torch
from torch import Tensor

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.ranges import Count


class Gaussian(Bottleneck):
    """Mean and log variance, stacked on channels, of a posterior over z [B, N, dim].

    Kingma and Welling, arXiv:1312.6114. The log variance is clamped to [-30, 20], as in the public latent diffusion
    autoencoders. The term `kl` is the mean over all elements of 0.5 (mean^2 + var - 1 - logvar).
    """

    def __init__(self, dim: Count):
        super().__init__()
        self.dim, self.inputs = dim, 2 * dim

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return ("kl",)

    def forward(self, h: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        mean, logvar = self.split(h)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        if draws is not None:
            noise = draws.normal("posterior", tuple(mean.shape[1:]))
            mean = mean + (0.5 * logvar).exp() * noise.to(mean)
        return Code(z=mean.to(h.dtype)), {"kl": kl}

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.split(h)
        return mean.to(h.dtype), (0.5 * logvar).exp().to(h.dtype)

    @staticmethod
    def split(h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each [B, N, dim], in float32 whatever the precision of h."""
        mean, logvar = h.float().chunk(2, dim=-1)
        return mean, torch.clamp(logvar, -30.0, 20.0)
