"""The non-saturating loss of critics."""

from torch import Tensor
from torch.nn import functional as F

from pipeline.adversarial.base import AdversarialLoss


class NonSaturating(AdversarialLoss):
    """`nonsaturating`: cross-entropy of the critic; softplus(-fake). Goodfellow et al., arXiv:1406.2661, section 3."""

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()

    def critic(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return F.softplus(-real).mean(), F.softplus(fake).mean()
