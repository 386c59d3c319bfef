"""The adversary's part in a training: what the critic sees, what it learns, and what it tells the tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.critics.base import Critic
from pipeline.draws import Draws
from pipeline.nn.adversarial import LogitMeans, critic_loss, generator_loss, matching_loss, mean_of, views
from pipeline.nn.augmentation import augmented
from pipeline.recipes.schema import Adversary


class Remembering(nn.Module):
    """A critic with the running means of its logits, so that a checkpoint has both."""

    def __init__(self, critic: Critic, means: LogitMeans):
        super().__init__()
        self.critic, self.means = critic, means

    def forward(self, *asked: Any) -> Any:
        return self.critic(*asked)


class Contest:
    """The two turns of a critic as `adversary` states them; `player` is the critic, with what else is kept of it.

    What the loop has made of the player, its distributed wrapper, is an argument. Real and rebuilt images are augmented
    by the same draws, in both turns of a step. With accumulation the running means of logits, and the directions of
    spectral norms, move with each micro-batch.
    """

    def __init__(self, adversary: Adversary, critic: Critic):
        self.adversary, self.critic = adversary, critic
        self.means = LogitMeans(adversary.lecam_decay) if adversary.lecam else None
        self.player: nn.Module = critic if self.means is None else Remembering(critic, self.means)
        self.metrics: dict[str, Tensor] = {}  # of the last turn of the critic

    def seen(self, images: Tensor, draws: Draws) -> Tensor:
        """Images [B, C, H, W] as the critic is shown them."""
        part = self.adversary.augmentation
        if part is None:
            return images
        return augmented(images, draws, part.probability, part.colour, part.translation, part.cutout)

    def told(self, player: nn.Module, images: Tensor, made: Tensor, draws: Draws) -> dict[str, tuple[Tensor, Tensor]]:
        """The tokenizer's terms, unweighted, each with its gradient at the image `made`, a leaf."""
        matching = self.adversary.feature_matching
        asked = (True,) if matching else ()
        with opponent(player) as judge:
            found = judge(self.seen(made, draws), *asked)
            logits, layers = found if matching else (found, None)
            values = {"adversarial": generator_loss(self.adversary.loss, floats(logits))}
            if matching:
                with torch.no_grad():
                    _, aims = judge(self.seen(images.float(), draws), *asked)
                values["feature_matching"] = matching_loss(aims, layers)
            return {term: (value.detach(), gradient(value, made, matching)) for term, value in values.items()}

    def learned(self, player: nn.Module, images: Tensor, made: Tensor, draws: Draws) -> dict[str, Tensor]:
        """The critic's terms, of images and what was made of them."""
        pair = (images.float(), made.detach().float())
        both = [view.chunk(2) for view in views(floats(player(torch.cat([self.seen(each, draws) for each in pair]))))]
        real, fake = ([pair[side] for pair in both] for side in (0, 1))
        for side, logits in (("real", real), ("fake", fake)):
            self.metrics[f"logits_{side}{self.critic.name}"] = mean_of([view.detach().mean() for view in logits])
        terms = critic_loss(self.adversary.loss, real, fake)
        if self.means is not None:
            terms["lecam"] = self.adversary.lecam * self.means(real, fake)
        return terms


@contextmanager
def opponent(player: nn.Module) -> Iterator[nn.Module]:
    """A player as another's judge: without its distributed wrapper, and frozen until the block ends."""
    judge = player.module if isinstance(player, nn.parallel.DistributedDataParallel) else player
    flags = [(parameter, parameter.requires_grad) for parameter in judge.parameters()]
    judge.requires_grad_(False)
    try:
        yield judge
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def gradient(value: Tensor, leaf: Tensor, again: bool = False) -> Tensor:
    """d value / d leaf, of whose graph nothing is kept unless another term is to go through it `again`.

    Scaled up on its way, for a mean's share of one pixel is too small for half precision.
    """
    scale = leaf.numel() ** 0.5
    return torch.autograd.grad(value * scale, leaf, retain_graph=again)[0] / scale


def floats(logits: Any) -> Any:
    return logits.float() if isinstance(logits, Tensor) else [view.float() for view in logits]
