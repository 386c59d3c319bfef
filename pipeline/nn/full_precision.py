"""Blocks that compute in the type of their inputs, whatever autocast is on around them."""

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """A context without autocast on the device of a tensor."""
    return torch.autocast(autocast_kind(like.device), enabled=False)


def autocast_kind(device: torch.device) -> str:
    """The kind of device whose autocast is switched; tensors without content take that of the CPU."""
    return "cpu" if device.type == "meta" else device.type
