"""A frozen module that another one uses without registering it as a submodule."""

from typing import Any

from torch import nn


class Unregistered:
    """`module`, frozen and in evaluation mode.

    The module that has this as an attribute does not save, copy, train or move it: it has to be on the right device.
    """

    def __init__(self, module: nn.Module):
        self.module = module.requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unregistered":
        return self
