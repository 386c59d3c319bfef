"""Players whose blocks are divided among the processes of a training: weights, gradients and moments (FSDP2)."""

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.distributed as dist
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.nn.processes import sum_over_processes, world_size


@dataclass(frozen=True)
class Sharding:
    """How the blocks of players are divided, as `accelerate launch --use_fsdp --fsdp_version 2` states it.

    Each process keeps a part of every block, and has the whole of one only while it computes it. What lies outside of
    blocks (embeddings, heads, codebooks) is whole in every process, and so are the players without blocks.
    """

    reshard_after_forward: bool = True  # a block is let go after the forward pass and fetched again for the backward

    def mesh(self, device: torch.device) -> DeviceMesh:
        return init_device_mesh(device.type, (world_size(),))

    def apply(self, module: nn.Module, mesh: DeviceMesh, whole: Collection[str] = ()) -> None:
        """Divide the blocks of `module`, in place, but for its parameters of the names `whole`."""
        for tensor in [*module.parameters(), *module.buffers()]:
            if world_size() > 1:
                dist.broadcast(tensor.detach(), 0)
        parameters = dict(module.named_parameters())
        kept = {parameters[name] for name in whole}
        inside = {parameter for block in blocks_of(module) for parameter in block.parameters()} - kept
        for block in blocks_of(module):
            fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard_after_forward, ignored_params=kept)
        outside = {parameter for parameter in parameters.values() if parameter not in inside}
        fully_shard(module, mesh=mesh, ignored_params=outside)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks that models inside of `module` name, of which a player is made for the most part."""
    models = [model for model in module.modules() if isinstance(model, ModelMixin)]
    return [
        block for model in models for block in model.modules() if type(block).__name__ in (model._repeated_blocks or ())
    ]


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


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


def average_whole_gradients(module: nn.Module) -> None:
    """Average over the processes the gradients of a sharded module's parameters that are whole in each."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None and not isinstance(p, DTensor)]
    if gradients:
        mean = sum_over_processes(torch.cat([gradient.flatten().float() for gradient in gradients])) / world_size()
        for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient))


def clip_gradients(parameters: Collection[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients so that their norm, of all parts together, is at most `largest`; the norm before that."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return nn.utils.clip_grad_norm_(parameters, largest)
    squares = {sharded: local(gradients[0]).new_zeros((), dtype=torch.float32) for sharded in (True, False)}
    for gradient in gradients:
        squares[isinstance(gradient, DTensor)] += torch.linalg.vector_norm(local(gradient), dtype=torch.float32) ** 2
    norm = (sum_over_processes(squares[True]) + squares[False]).sqrt()
    torch._foreach_mul_([local(gradient) for gradient in gradients], (largest / (norm + 1e-6)).clamp(max=1))
    return norm


def outline(module: nn.Module) -> nn.Module:
    """A copy of a module that is not yet sharded, with no memory for its parameters, for `gather`."""
    return deepcopy(module, {id(p): nn.Parameter(p.detach().to("meta"), False) for p in module.parameters()})


def gather(module: nn.Module, outlined: nn.Module) -> nn.Module:
    """A plain copy of a sharded module by its `outline`, with the parts of all processes, each of which has to ask."""
    values = {id(p): nn.Parameter(whole(ours).detach(), False) for p, ours in pairs(outlined, module)}
    return deepcopy(outlined, values | {id(b): ours.clone() for b, ours in zip(outlined.buffers(), module.buffers())})


def pairs(one: nn.Module, other: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    return list(zip(one.parameters(), other.parameters(), strict=True))
