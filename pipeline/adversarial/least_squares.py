"""The least-squares loss of critics."""

from torch import Tensor

from pipeline.adversarial.base import AdversarialLoss


class LeastSquares(AdversarialLoss):
    """`least_squares`: (real - 1)^2, fake^2, and (fake - 1)^2. Mao et al., arXiv:1611.04076."""

    def generator(self, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean()

    def critic(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return (real - 1).square().mean(), fake.square().mean()
