"""The hinge loss of critics."""

from torch import Tensor
from torch.nn import functional as F

from pipeline.adversarial.base import AdversarialLoss


class Hinge(AdversarialLoss):
    """`hinge`: relu(1 - real), relu(1 + fake), and -fake. Lim and Ye, arXiv:1705.02894."""

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()

    def critic(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(1 - real).mean(), F.relu(1 + fake).mean()
