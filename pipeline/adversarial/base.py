"""What every adversarial loss promises: a term of the critic and one of the tokenizer, on the critic's logits."""

from abc import ABC, abstractmethod

from torch import Tensor

from pipeline.components import Node
from pipeline.nn.critic_logits import Logits, mean_of, views
from pipeline.ranges import RangedArguments


class AdversarialLoss(RangedArguments, ABC):
    """Two terms on the logits of real and of rebuilt images; large logits mean real.

    A file gives both for one view of an image; of several views, as of several scales, each term is the mean.
    """

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def generator(self, fake: Tensor) -> Tensor:
        """The term of what made the images, a scalar, of their logits of any shape."""

    @abstractmethod
    def critic(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's terms of real and of rebuilt images, two scalars."""

    def generator_loss(self, fake: Logits) -> Tensor:
        """The mean of `generator` over views."""
        return mean_of([self.generator(view) for view in views(fake)])

    def critic_loss(self, real: Logits, fake: Logits) -> dict[str, Tensor]:
        """The critic's terms `real` and `fake`, each half its mean over views; the loss is their sum."""
        terms = [self.critic(*pair) for pair in zip(views(real), views(fake), strict=True)]
        return {name: 0.5 * mean_of(list(values)) for name, values in zip(("real", "fake"), zip(*terms))}


def loss_node(loss: str | Node) -> Node:
    """The node of an adversarial loss that a recipe names by its kind alone, or as a node."""
    return {"kind": loss} if isinstance(loss, str) else loss
