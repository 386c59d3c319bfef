"""The hinge loss for the critic, and the non-saturating one for what it judges."""

from torch import Tensor
from torch.nn import functional as F

from pipeline.adversarial.base import AdversarialLoss


class SoftplusHinge(AdversarialLoss):
    """`softplus_hinge`: relu(1 - real), relu(1 + fake), and softplus(-fake), as in Hita's public implementation."""

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()

    def critic(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(1 - real).mean(), F.relu(1 + fake).mean()
