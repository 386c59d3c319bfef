"""The arithmetic of a chain of Gaussian noising steps: its posterior, its spacing, and the bits a model of it costs."""

import math
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Spacing = Literal["even", "stride"]


class NoiseChain:
    """q(z_t | z_{t-1}) = N(sqrt(1 - beta_t) z_{t-1}, beta_t) over the kept timesteps of a longer chain.

    Ho et al., arXiv:2006.11239, and Nichol and Dhariwal, arXiv:2102.09672. Tables are float64 [T]; `index` is a place
    in this chain, one int for the whole batch or a tensor [B]; states are [B, N, C].
    """

    def __init__(self, betas: Tensor, timesteps: Tensor | None = None):
        self.betas = betas
        self.timesteps = torch.arange(len(betas)) if timesteps is None else timesteps  # places in the trained chain
        self.signal = torch.cumprod(1 - betas, 0)  # alpha-bar
        self.signal_before = torch.cat([torch.ones(1, dtype=torch.float64), self.signal[:-1]])

    @classmethod
    def linear(cls, count: int, first: float, last: float) -> "NoiseChain":
        return cls(torch.linspace(first, last, count, dtype=torch.float64))

    @classmethod
    def cosine(cls, count: int) -> "NoiseChain":
        """alpha-bar falls as cos^2 of the time, betas stop at 0.999 (arXiv:2102.09672, equation 17)."""
        times = torch.arange(count + 1, dtype=torch.float64) / count
        signal = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls((1 - signal[1:] / signal[:-1]).clamp(max=0.999))

    def spaced(self, steps: int, spacing: Spacing = "even", below: int | None = None) -> "NoiseChain":
        """The chain over `steps` of the timesteps under `below`, with betas from the kept alpha-bars.

        `even` keeps round(i (below - 1) / (steps - 1)); `stride` keeps every k-th, the smallest k that gives exactly
        `steps` (DDIM's), and raises ValueError where there is none.
        """
        below = len(self.betas) if below is None else below
        kept = evenly(below, steps) if spacing == "even" else strided(below, steps)
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.signal[kept][:-1]])
        return NoiseChain(1 - self.signal[kept] / before, self.timesteps[kept])

    @cached_property
    def alpha(self) -> Tensor:
        """The share of data in z_t; with `sigma`, rooted before any rounding, so that 1 - signal keeps its digits."""
        return self.signal.sqrt()

    @cached_property
    def sigma(self) -> Tensor:
        return (1 - self.signal).sqrt()

    @cached_property
    def posterior_variance(self) -> Tensor:
        return self.betas * (1 - self.signal_before) / (1 - self.signal)

    @cached_property
    def posterior_log_variance(self) -> Tensor:
        """Clipped: the first variance is 0 and is replaced by the second, as in the published models."""
        return self._clipped(self.posterior_variance)

    @cached_property
    def beta_log_variance(self) -> Tensor:
        return self.betas.log()

    @cached_property
    def large_log_variance(self) -> Tensor:
        """Of the betas, the first replaced in the same way (DDPM's other choice)."""
        return self._clipped(self.betas)

    def _clipped(self, variances: Tensor) -> Tensor:
        second = min(1, len(variances) - 1)
        return torch.cat([self.posterior_variance[second : second + 1], variances[1:]]).log()

    @cached_property
    def posterior_of_data(self) -> Tensor:
        return self.betas * self.signal_before.sqrt() / (1 - self.signal)

    @cached_property
    def posterior_of_state(self) -> Tensor:
        return (1 - self.signal_before) * (1 - self.betas).sqrt() / (1 - self.signal)

    def noised(self, data: Tensor, noise: Tensor, index: int | Tensor) -> Tensor:
        """A draw of q(z_t | data) with this noise."""
        return self.at(self.alpha, index, data) * data + self.at(self.sigma, index, data) * noise

    def data_from_noise(self, noise: Tensor, z: Tensor, index: int | Tensor) -> Tensor:
        return (z - self.at(self.sigma, index, z) * noise) / self.at(self.alpha, index, z)

    def noise_from_data(self, data: Tensor, z: Tensor, index: int | Tensor) -> Tensor:
        return (z - self.at(self.alpha, index, z) * data) / self.at(self.sigma, index, z)

    def posterior_mean(self, data: Tensor, z: Tensor, index: int | Tensor) -> Tensor:
        """Mean of q(z_{t-1} | z_t, data), equation 7 of DDPM."""
        return self.at(self.posterior_of_data, index, z) * data + self.at(self.posterior_of_state, index, z) * z

    def at(self, table: Tensor, index: int | Tensor, like: Tensor) -> Tensor:
        """Entries of a table that broadcast against [B, N, C], in the precision of `like`."""
        if isinstance(index, int):
            return table[index].to(like)
        return table.to(like.device)[index].view(-1, 1, 1).to(like.dtype)


def evenly(span: int, steps: int) -> Tensor:
    """round(i (span - 1) / (steps - 1)), the last alone when steps is 1.

    The stride is added up rather than multiplied, as in the published respacing: the two round otherwise at a tie.
    """
    if not 1 <= steps <= span:
        raise ValueError(f"{steps} steps do not fit a chain of {span}; give 1 to {span}")
    if steps == 1:
        return torch.tensor([span - 1])
    stride, place, kept = (span - 1) / (steps - 1), 0.0, []
    for _ in range(steps):
        kept.append(round(place))
        place += stride
    return torch.tensor(kept)


def strided(span: int, steps: int) -> Tensor:
    """range(0, span, k) with exactly `steps` entries."""
    for stride in range(1, span + 1):
        if len(range(0, span, stride)) == steps:
            return torch.arange(0, span, stride)
    raise ValueError(f"no whole stride takes {steps} of {span} steps; use spacing=even or a divisor of {span}")


def gaussian_bits(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(other)) of each element, in bits."""
    gap = (mean - other_mean) ** 2 * torch.exp(-other_log_variance)
    difference = other_log_variance - log_variance
    return 0.5 * (difference + torch.exp(-difference) + gap - 1) / math.log(2)


def discretized_bits(data: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log2 of the Gaussian's mass in the bin of width 2/255 around each element of data in [-1, 1].

    The outermost bins reach to infinity; the normal distribution function by its tanh approximation (DDPM, section
    3.3, in the form of the published improved-diffusion code).
    """
    precision = torch.exp(-0.5 * log_variance)
    above = normal_cdf(precision * (data - mean + 1 / 255))
    under = normal_cdf(precision * (data - mean - 1 / 255))
    mass = torch.where(data < -0.999, above, torch.where(data > 0.999, 1 - under, above - under))
    return -mass.clamp(min=1e-12).log2()


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
