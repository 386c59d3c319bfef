"""Offloading by accelerate and diffusers on a CPU, so that a weight that is read while it is away spoils the result."""

from collections.abc import Callable
from pathlib import Path

import accelerate
import torch
from diffusers import ModelMixin
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor, nn

CPU = torch.device("cpu")
GROUP_HOOK = "group_offloading"  # diffusers' name of it


def offload_sequentially(model: nn.Module) -> None:
    """As `enable_sequential_cpu_offload` does with a component: weights that are away are on the meta device."""
    accelerate.cpu_offload(model, "cpu", offload_buffers=len(model._parameters) > 0)


def offload_to_disk(model: nn.Module, folder: Path) -> None:
    """As a device map with `disk` does."""
    accelerate.disk_offload(model, str(folder), execution_device=CPU, offload_buffers=True)


def offload_groups(model: ModelMixin, level: str, folder: Path) -> None:
    """diffusers' group offloading through files; weights that are away are NaN, whole numbers are -1."""
    model.enable_group_offload(CPU, offload_type=level, num_blocks_per_group=1, offload_to_disk_path=str(folder))
    for module in model.modules():
        hook = getattr(module, "_diffusers_hook", None) and module._diffusers_hook.get_hook(GROUP_HOOK)
        if hook:
            hook.group._offload_to_disk = spoil(hook.group)
            hook.group._offload_to_disk()


def spoil(group: ModuleGroup) -> Callable[[], None]:
    """Write the group's file once, and spoil its tensors every time."""

    def offload() -> None:
        if not group._is_offloaded_to_disk:
            ModuleGroup._offload_to_disk(group)
        for tensor in group.tensor_to_key:
            tensor.data = spoilt(tensor)

    return offload


def spoilt(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        return torch.zeros_like(tensor)
    return torch.full_like(tensor.data, float("nan") if tensor.is_floating_point() else -1)


WAYS: dict[str, Callable[[ModelMixin, Path], None]] = {
    "sequential": lambda model, folder: offload_sequentially(model),
    "disk": offload_to_disk,
    "blocks": lambda model, folder: offload_groups(model, "block_level", folder),
    "leaves": lambda model, folder: offload_groups(model, "leaf_level", folder),
}
