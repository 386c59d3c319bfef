"""The two sides of an adversarial loss, on a critic's logits; large means real."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.nn.processes import processes, summed

Kind = Literal["hinge", "nonsaturating", "least_squares"]
Logits = Tensor | Sequence[Tensor]  # of one view of an image, or of several, which count equally


def generator_loss(kind: Kind, fake: Logits) -> Tensor:
    """What the maker of `fake` descends: -mean for hinge (Lim and Ye, arXiv:1705.02894)."""
    return mean_of([_generator_loss(kind, view) for view in views(fake)])


def critic_loss(kind: Kind, real: Logits, fake: Logits) -> dict[str, Tensor]:
    """What the critic descends, the sum of two halves: `real` and `fake`, each 0.5 times its mean."""
    both = [_critic_loss(kind, *pair) for pair in zip(views(real), views(fake), strict=True)]
    return {name: 0.5 * mean_of([half[name] for half in both]) for name in ("real", "fake")}


def matching_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference between what a critic's layers make of real and of rebuilt images, a mean over layers.

    Wang et al., arXiv:1711.11585, equation 4; the real side has no gradient.
    """
    return mean_of([F.l1_loss(theirs.float(), own.detach().float()) for own, theirs in zip(real, fake, strict=True)])


class LogitMeans(nn.Module):
    """Running means of a critic's logits of real and of rebuilt images, and LeCam's regularisation by them.

    With m_r and m_f as they were before: mean relu(real - m_f)^2 + mean relu(m_r - fake)^2, Tseng et al.,
    arXiv:2104.03310, equation 5, where a verdict beyond the other side's mean alone costs. The means are those of all
    processes; they begin at 0, as published, and logits that are not finite leave them as they are.
    """

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real: Logits, fake: Logits) -> Tensor:
        """The penalty of this batch's logits, which the means then move towards."""
        m_real, m_fake = self.real.clone(), self.fake.clone()
        penalty = mean_of([F.relu(view - m_fake).square().mean() for view in views(real)])
        penalty = penalty + mean_of([F.relu(m_real - view).square().mean() for view in views(fake)])
        for mean, logits in ((self.real, real), (self.fake, fake)):
            here = summed(mean_of([view.mean() for view in views(logits)])) / processes()
            mean.lerp_(torch.where(here.isfinite(), here, mean), 1 - self.decay)
        return penalty


def views(logits: Logits) -> Sequence[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits


def mean_of(values: Sequence[Tensor]) -> Tensor:
    return sum(values) / len(values)


def _generator_loss(kind: Kind, fake: Tensor) -> Tensor:
    if kind == "hinge":
        return -fake.mean()
    return F.softplus(-fake).mean() if kind == "nonsaturating" else (fake - 1).square().mean()


def _critic_loss(kind: Kind, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    if kind == "hinge":
        halves = F.relu(1 - real), F.relu(1 + fake)
    elif kind == "nonsaturating":  # Goodfellow et al., arXiv:1406.2661, section 3
        halves = F.softplus(-real), F.softplus(fake)
    else:  # Mao et al., arXiv:1611.04076
        halves = (real - 1).square(), fake.square()
    return {"real": halves[0].mean(), "fake": halves[1].mean()}
