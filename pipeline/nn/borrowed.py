"""A frozen module that another one sees by, without its being a part of that one."""

from typing import Any

from torch import nn


class Borrowed:
    """`module`, frozen and in evaluation mode; who holds it as an attribute neither saves, copies nor trains it.

    It is not moved with its holder either: it has to be on the right device.
    """

    def __init__(self, module: nn.Module):
        self.module = module.requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Borrowed":
        return self
