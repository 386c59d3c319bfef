"""Paths from data to noise, z = alpha(u) data + sigma(u) noise, and the algebra between what a network may predict."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Path(ABC):
    """Noise levels `u` broadcast against z [B, N, C]; u = 0 is data, u = 1 noise; rates are derivatives by u.

    Albergo, Boffi and Vanden-Eijnden, arXiv:2303.08797; the three paths are those of SiT, arXiv:2401.08740, appendix A,
    whose time runs the other way (t = 1 - u, so that rates and velocities change their sign).
    """

    @abstractmethod
    def alpha(self, u: Tensor) -> Tensor:
        """The share of data."""

    @abstractmethod
    def sigma(self, u: Tensor) -> Tensor:
        """The share of noise."""

    @abstractmethod
    def alpha_rate(self, u: Tensor) -> Tensor: ...

    @abstractmethod
    def sigma_rate(self, u: Tensor) -> Tensor: ...

    def state(self, data: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        return self.alpha(u) * data + self.sigma(u) * noise

    def velocity(self, data: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        """dz/du of the path through these two ends."""
        return self.alpha_rate(u) * data + self.sigma_rate(u) * noise

    def noise_from_velocity(self, velocity: Tensor, z: Tensor, u: Tensor) -> Tensor:
        return (self.alpha(u) * velocity - self.alpha_rate(u) * z) / self.turn(u)

    def data_from_velocity(self, velocity: Tensor, z: Tensor, u: Tensor) -> Tensor:
        return (self.sigma_rate(u) * z - self.sigma(u) * velocity) / self.turn(u)

    def score_from_velocity(self, velocity: Tensor, z: Tensor, u: Tensor) -> Tensor:
        """The gradient of the log density of z, -E[noise | z] / sigma; infinite at u = 0."""
        return -self.noise_from_velocity(velocity, z, u) / self.sigma(u)

    def velocity_from_noise(self, noise: Tensor, z: Tensor, u: Tensor) -> Tensor:
        """Infinite where alpha is 0, at u = 1 of the linear and the trigonometric path."""
        return self.log_alpha_rate(u) * (z - self.sigma(u) * noise) + self.sigma_rate(u) * noise

    def velocity_from_data(self, data: Tensor, z: Tensor, u: Tensor) -> Tensor:
        """Infinite at u = 0, where sigma is 0."""
        return self.alpha_rate(u) * data + self.sigma_rate(u) / self.sigma(u) * (z - self.alpha(u) * data)

    def velocity_from_score(self, score: Tensor, z: Tensor, u: Tensor) -> Tensor:
        return self.velocity_from_noise(-self.sigma(u) * score, z, u)

    def log_alpha_rate(self, u: Tensor) -> Tensor:
        """alpha'/alpha: the drift of the forward process dz = (alpha'/alpha) z du + sqrt(2 diffusion) dW."""
        return self.alpha_rate(u) / self.alpha(u)

    def diffusion(self, u: Tensor) -> Tensor:
        """sigma sigma' - sigma^2 alpha'/alpha, half the squared noise rate of the forward process."""
        return self.sigma(u) * self.sigma_rate(u) - self.log_alpha_rate(u) * self.sigma(u) ** 2

    def turn(self, u: Tensor) -> Tensor:
        """alpha sigma' - alpha' sigma, positive: 1 on the linear path, pi / 2 on the trigonometric one."""
        return self.alpha(u) * self.sigma_rate(u) - self.alpha_rate(u) * self.sigma(u)


class Linear(Path):
    """alpha = 1 - u, sigma = u: rectified flow (arXiv:2209.03003)."""

    def alpha(self, u: Tensor) -> Tensor:
        return 1 - u

    def sigma(self, u: Tensor) -> Tensor:
        return u

    def alpha_rate(self, u: Tensor) -> Tensor:
        return -torch.ones_like(u)

    def sigma_rate(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


class Trigonometric(Path):
    """alpha = cos(pi u / 2), sigma = sin(pi u / 2); SiT calls it GVP."""

    def alpha(self, u: Tensor) -> Tensor:
        return torch.cos(u * (math.pi / 2))

    def sigma(self, u: Tensor) -> Tensor:
        return torch.sin(u * (math.pi / 2))

    def alpha_rate(self, u: Tensor) -> Tensor:
        return -math.pi / 2 * self.sigma(u)

    def sigma_rate(self, u: Tensor) -> Tensor:
        return math.pi / 2 * self.alpha(u)


class VariancePreserving(Path):
    """alpha = exp(-1/2 int beta), beta(u) = 0.1 + 19.9 u, sigma^2 = 1 - alpha^2 (Song et al., arXiv:2011.13456)."""

    least, most = 0.1, 20.0

    def beta(self, u: Tensor) -> Tensor:
        return self.least + (self.most - self.least) * u

    def log_alpha(self, u: Tensor) -> Tensor:
        return -(self.most - self.least) / 4 * u**2 - self.least / 2 * u

    def alpha(self, u: Tensor) -> Tensor:
        return torch.exp(self.log_alpha(u))

    def sigma(self, u: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(u)))

    def alpha_rate(self, u: Tensor) -> Tensor:
        return self.log_alpha_rate(u) * self.alpha(u)

    def sigma_rate(self, u: Tensor) -> Tensor:
        return self.alpha(u) ** 2 * self.beta(u) / (2 * self.sigma(u))

    def log_alpha_rate(self, u: Tensor) -> Tensor:
        return -self.beta(u) / 2

    def diffusion(self, u: Tensor) -> Tensor:
        return self.beta(u) / 2


PATHS: dict[str, Path] = {
    "linear": Linear(),
    "trigonometric": Trigonometric(),
    "variance_preserving": VariancePreserving(),
}
