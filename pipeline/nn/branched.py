"""Tokenizers with branches that can be trained alone, each on its own view of the images."""

from abc import ABCMeta, abstractmethod

from torch import Tensor, nn


class Branched(metaclass=ABCMeta):
    """A tokenizer whose `forward` takes `branch`: images are then that branch's view, and so is what comes back.

    The branches are keys of its `capabilities().branches`, with channels, height and width of their views.
    """

    @abstractmethod
    def view(self, images: Tensor, branch: str) -> Tensor:
        """What the branch reads, and makes again, of images [B, C, H, W]."""

    @abstractmethod
    def branch_last_layer(self, branch: str) -> nn.Parameter:
        """The weight that makes the view of this branch."""


def last_layer_of(tokenizer: nn.Module, part: str) -> nn.Parameter:
    """The weight that makes the images which are compared in a phase that trains `part`."""
    return tokenizer.branch_last_layer(part) if part in tokenizer.can.branches else tokenizer.last_layer
