"""The two sides of an adversarial loss, on a critic's logits; large means real."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Kind = Literal["hinge", "nonsaturating", "least_squares"]


def generator_loss(kind: Kind, fake: Tensor) -> Tensor:
    """What the maker of `fake` descends: -mean for hinge (Lim and Ye, arXiv:1705.02894)."""
    if kind == "hinge":
        return -fake.mean()
    return F.softplus(-fake).mean() if kind == "nonsaturating" else (fake - 1).square().mean()


def critic_loss(kind: Kind, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """What the critic descends, the sum of two halves: `real` and `fake`, each 0.5 times its mean."""
    if kind == "hinge":
        halves = F.relu(1 - real), F.relu(1 + fake)
    elif kind == "nonsaturating":  # Goodfellow et al., arXiv:1406.2661, section 3
        halves = F.softplus(-real), F.softplus(fake)
    else:  # Mao et al., arXiv:1611.04076
        halves = (real - 1).square(), fake.square()
    return {"real": 0.5 * halves[0].mean(), "fake": 0.5 * halves[1].mean()}
