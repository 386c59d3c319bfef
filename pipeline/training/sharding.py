"""Players whose blocks are divided among the processes of a training: weights, gradients and moments (FSDP2)."""

import warnings
from collections.abc import Collection, Iterator
from copy import deepcopy

import torch
import torch.distributed as dist
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.nn.processes import sum_over_processes, world_size
from pipeline.runs.sharding import Sharding


def divide(module: nn.Module, sharding: Sharding, device: torch.device, undivided: Collection[str] = ()) -> None:
    """Divide the blocks of `module` among the processes, in place, but for parameters of the names `undivided`.

    By torch's `fully_shard` (Zhao et al., arXiv:2304.11277): each process keeps a part of every block, and has the
    whole of one only while it computes it. What lies outside of blocks (embeddings, heads, codebooks) stays whole in
    every process.
    """
    for tensor in [*module.to(device).parameters(), *module.buffers()]:
        dist.broadcast(tensor.detach(), 0)
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # no task changes it in place
    mesh, blocks = init_device_mesh(device.type, (world_size(),)), list(blocks_of(module))
    outside = {module.get_parameter(name) for name in undivided}
    inside = {parameter for block in blocks for parameter in block.parameters()} - outside
    outside |= set(module.parameters()) - inside
    for part in [*blocks, module]:  # the whole last, so that it knows its blocks
        options = {"mesh": mesh, "reshard_after_forward": sharding.reshard_after_forward}
        fully_shard(part, **options, ignored_params=outside)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks that models inside of `module` name, in which most of its parameters are."""
    for model in module.modules():
        if isinstance(model, ModelMixin) and model._repeated_blocks:
            yield from (block for block in model.modules() if type(block).__name__ in model._repeated_blocks)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all processes, each of which has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_as(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole `tensor`, the same in every process, as `like` is: divided, on its device, of its type and layout."""
    if not isinstance(like, DTensor):
        return torch.empty_like(like).copy_(tensor)
    tensor = tensor.to(like.device, like.dtype)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def average_undivided_gradients(parameters: Collection[nn.Parameter]) -> None:
    """Average over the processes the gradients of a divided player's parameters that are whole in each.

    Where no parameter is divided, this has been done in the backward pass.
    """
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)]
    if gradients:
        mean = sum_over_processes(torch.cat([gradient.flatten().float() for gradient in gradients])) / world_size()
        for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient))


def clip_gradients(parameters: Collection[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients so that their norm, of all parts together, is at most `largest`; the norm before that."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return nn.utils.clip_grad_norm_(parameters, largest)
    squares = {divided: local(gradients[0]).new_zeros((), dtype=torch.float32) for divided in (True, False)}
    for gradient in gradients:
        squares[isinstance(gradient, DTensor)] += torch.linalg.vector_norm(local(gradient), dtype=torch.float32) ** 2
    norm = (sum_over_processes(squares[True]) + squares[False]).sqrt()
    torch._foreach_mul_([local(gradient) for gradient in gradients], (largest / (norm + 1e-6)).clamp(max=1))
    return norm


def outline(module: nn.Module) -> nn.Module:
    """A copy of a module that is not divided yet, with no memory for its parameters, for `gather`."""
    return deepcopy(module, {id(p): nn.Parameter(p.detach().to("meta"), False) for p in module.parameters()})


def gather(module: nn.Module, outlined: nn.Module) -> nn.Module:
    """A plain copy of a divided module by its `outline`, with the parts of all processes, each of which has to ask."""
    copies: dict[int, Tensor] = {}
    for empty, divided in zip(outlined.parameters(), module.parameters(), strict=True):
        copies[id(empty)] = nn.Parameter(whole(divided.detach()), False)
    for empty, buffer in zip(outlined.buffers(), module.buffers(), strict=True):
        copies[id(empty)] = buffer.clone()
    return deepcopy(outlined, copies)
