"""Blocks that compute in the type of their inputs, whatever autocast is on around them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def full_precision(like: Tensor) -> torch.autocast:
    """A context without autocast on the device of a tensor."""
    return torch.autocast(autocast_kind(like.device), enabled=False)


def autocast_kind(device: torch.device) -> str:
    """The kind of device whose autocast is switched; tensors without content take that of the CPU."""
    return "cpu" if device.type == "meta" else device.type


class FullPrecisionLinear(nn.Linear):
    """A linear layer that computes in float32, whatever its weights are kept in and its input is."""

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            return F.linear(x.float(), self.weight.float(), self.bias.float())
