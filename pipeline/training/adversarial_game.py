"""The adversarial part of a training: the critic's turn, and the terms that the tokenizer learns from the critic."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.adversarial.base import loss_node
from pipeline.components import Arguments, build
from pipeline.critics.base import Critic
from pipeline.draws import Draws, PartDraws
from pipeline.nn.augmentation import augment, blur, crop_batch
from pipeline.nn.critic_logits import LeCam, feature_matching, mean_of, views
from pipeline.recipes.adversary import Adversary
from pipeline.runs.precision import without_autocast


class CriticPlayer(nn.Module):
    """A critic with the running means of its logits, so that a checkpoint has both.

    Of a list of batches it gives a list of verdicts, one pass after the other in one call, so that the wrapper that
    averages gradients over processes sees one.
    """

    def __init__(self, critic: Critic, means: LeCam | None):
        super().__init__()
        self.critic, self.means = critic, means

    def forward(self, images: Tensor | list[Tensor], *arguments: Any) -> Any:
        if isinstance(images, Tensor):
            return self.critic(images, *arguments)
        return [self.critic(each, *arguments) for each in images]


class AdversarialGame:
    """The two turns of a critic as `adversary` states them; `player` is the critic with what is saved beside it.

    The player as the loop has prepared it, in its distributed wrapper, is an argument. Real and rebuilt images are
    augmented by the same draws, in both turns of a step, unless the recipe has each by its own. A critic whose verdict
    depends on the batch learns from real and rebuilt images in passes of their own. With accumulation the running means
    of logits, and the directions of spectral norms, move with each micro-batch.
    """

    def __init__(self, adversary: Adversary, critic: Critic):
        self.adversary, self.critic = adversary, critic
        self.loss = build("adversarial", loss_node(adversary.loss))
        means = adversary.lecam_decay, adversary.lecam_means, adversary.lecam_of
        self.means = LeCam(*means) if adversary.lecam else None
        cropped = adversary.augmentation is not None and adversary.augmentation.crop is not None
        self.apart = cropped or critic.judges_batches(Arguments.from_config(critic))
        wrapped = self.apart or self.means is not None
        self.player: nn.Module = CriticPlayer(critic, self.means) if wrapped else critic
        self.metrics: dict[str, Tensor] = {}  # of the last turn of the critic

    def augment(self, images: Tensor, draws: Draws, side: str) -> Tensor:
        """Images [B, C, H, W] as the critic judges them; `side` is whose draws these are, where none are shared."""
        settings = self.adversary.augmentation
        if settings is None:
            return images
        draws = draws if settings.shared else PartDraws(draws, side)
        if settings.blur_fade and draws.step is not None:
            left = 1 - (draws.step - self.adversary.start) / settings.blur_fade
            images = blur(images, min(1.0, max(0.0, left)))
        amounts = settings.probability, settings.colour, settings.translation, settings.cutout
        images = augment(images, draws, *amounts, settings.first)
        return images if settings.crop is None else crop_batch(images, settings.crop, draws)

    def tokenizer_terms(
        self, player: nn.Module, images: Tensor, rebuilt: Tensor, draws: Draws
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The tokenizer's terms, unweighted, each with its gradient at the `rebuilt` images, a leaf."""
        matching = self.adversary.feature_matching
        arguments = (True,) if matching else ()
        with frozen_judge(player) as critic:
            outputs = critic(self.augment(rebuilt, draws, "tokenizer"), *arguments)
            logits, layers = outputs if matching else (outputs, None)
            values = {"adversarial": self.loss.generator_loss(as_float32(logits))}
            if matching:
                with torch.no_grad():
                    _, targets = critic(self.augment(images.float(), draws, "tokenizer"), *arguments)
                values["feature_matching"] = feature_matching(targets, layers)
            return {term: (value.detach(), gradient(value, rebuilt, matching)) for term, value in values.items()}

    def critic_terms(self, player: nn.Module, images: Tensor, rebuilt: Tensor, draws: Draws) -> dict[str, Tensor]:
        """The critic's terms, of real images and of rebuilt ones."""
        rebuilt = rebuilt.detach().float()
        sides = {"real": images.float(), "fake": round_to_levels(rebuilt) if self.adversary.eight_bits else rebuilt}
        seen = [self.augment(each, draws, side) for side, each in sides.items()]
        if self.apart:
            real, fake = (list(views(as_float32(logits))) for logits in player(seen))
        else:
            pairs = [view.chunk(2) for view in views(as_float32(player(torch.cat(seen))))]
            real, fake = ([pair[side] for pair in pairs] for side in (0, 1))
        for side, logits in (("real", real), ("fake", fake)):
            self.metrics[f"logits_{side}{self.critic.name}"] = mean_of([view.detach().mean() for view in logits])
        terms = self.loss.critic_loss(real, fake)
        if self.means is not None:
            terms["lecam"] = self.adversary.lecam * self.means(real, fake)
        return terms


@contextmanager
def frozen_judge(player: nn.Module) -> Iterator[nn.Module]:
    """A player as another's judge: without its distributed wrapper, and frozen until the block ends."""
    judge = player.module if isinstance(player, nn.parallel.DistributedDataParallel) else player
    flags = [(parameter, parameter.requires_grad) for parameter in judge.parameters()]
    judge.requires_grad_(False)
    try:
        yield judge
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def gradient(value: Tensor, leaf: Tensor, retain_graph: bool = False) -> Tensor:
    """d value / d leaf; the graph is kept only where another term needs it.

    Scaled on its way, for one pixel's fraction of a mean is too small for half precision.
    """
    scale = leaf.numel() ** 0.5
    with without_autocast(leaf.device):  # what was computed in float32 goes back in float32
        return torch.autograd.grad(value * scale, leaf, retain_graph=retain_graph)[0] / scale


def round_to_levels(images: Tensor) -> Tensor:
    """Images in [-1, 1] with the nearest of the 256 values that stored images have."""
    return ((images + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def as_float32(logits: Any) -> Any:
    return logits.float() if isinstance(logits, Tensor) else [view.float() for view in logits]
