"""Where a module computes, which is not where its weights lie while hooks keep them away."""

import torch
from torch import nn

GROUP_HOOK = "group_offloading"  # diffusers' name of it


def execution_device(module: nn.Module) -> torch.device:
    """The device that the hooks of accelerate or of diffusers bring its weights to; that of the weights without hooks.

    For a module with weights.
    """
    for part in module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        if group := registry and registry.get_hook(GROUP_HOOK):
            return group.config.onload_device
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device
