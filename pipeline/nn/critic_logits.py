"""What is computed of a critic's logits and layers beside its loss: LeCam's penalty and feature matching."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.nn.processes import sum_over_processes, world_size

MeansMove = Literal["after", "before"]  # the penalty is taken
LeCamOf = Literal["logits", "means"]
Logits = Tensor | Sequence[Tensor]  # of one view of an image, or of several, which count equally


def views(logits: Logits) -> Sequence[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits


def mean_of(values: Sequence[Tensor]) -> Tensor:
    return sum(values) / len(values)


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference between a critic's layers for real and for rebuilt images, a mean over layers.

    Wang et al., arXiv:1711.11585, equation 4; the real side has no gradient.
    """
    return mean_of([F.l1_loss(b.float(), a.detach().float()) for a, b in zip(real, fake, strict=True)])


class LeCam(nn.Module):
    """LeCam's regularisation, by running means of a critic's logits of real and of rebuilt images.

    With m_r and m_f as they were before: mean relu(real - m_f)^2 + mean relu(m_r - fake)^2, Tseng et al.,
    arXiv:2104.03310, equation 5, so that only a logit beyond the other side's mean costs. The means are those of all
    processes; they begin at 0, as published, and logits that are not finite leave them as they are. With `move` before
    they are those that already hold this batch. With `of` means the two terms are of the mean logit of the images at
    hand, real or rebuilt, as in TiTok.
    """

    def __init__(self, decay: float = 0.999, move: MeansMove = "after", of: LeCamOf = "logits"):
        super().__init__()
        self.decay, self.move, self.of = decay, move, of
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real: Logits, fake: Logits) -> Tensor:
        """The penalty of this batch's logits; the means move towards these."""
        if self.move == "before":
            self.move_means(real, fake)
        m_real, m_fake = self.real.clone(), self.fake.clone()
        reals, fakes = ([v.mean() if self.of == "means" else v for v in views(logits)] for logits in (real, fake))
        penalty = mean_of([F.relu(view - m_fake).square().mean() for view in reals])
        penalty = penalty + mean_of([F.relu(m_real - view).square().mean() for view in fakes])
        if self.move == "after":
            self.move_means(real, fake)
        return penalty

    def move_means(self, real: Logits, fake: Logits) -> None:
        """The running means after this batch."""
        for mean, logits in ((self.real, real), (self.fake, fake)):
            here = sum_over_processes(mean_of([view.detach().mean() for view in views(logits)])) / world_size()
            mean.lerp_(torch.where(here.isfinite(), here, mean), 1 - self.decay)
