"""Sums and gathers over the processes of a training; with one process they are the identity."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    return world_size() == 1 or dist.get_rank() == 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum over processes, in a new tensor without a gradient; the same bits in each."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def gather_over_processes(tensor: Tensor) -> Tensor:
    """[processes, *shape]: every process's `tensor`, in the order of ranks, without a gradient."""
    if world_size() == 1:
        return tensor.detach()[None]
    copies = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(copies, tensor.detach().contiguous())
    return torch.stack(copies)


def broadcast_from_first(tensor: Tensor) -> Tensor:
    """Overwrite `tensor` with the first process's, and return it."""
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def global_mean(mean: Tensor) -> Tensor:
    """The mean over processes of equally many things each, with the gradient of a function of it.

    The value is every process's, the gradient that of its own mean alone: gradients are averaged over processes
    afterwards, which makes it that of the whole.
    """
    return mean + (sum_over_processes(mean) / world_size() - mean).detach()


def gather_rows(rows: Tensor) -> Tensor:
    """[processes * B, ...]: the rows [B, ...] of every process in the order of ranks, for a loss of all of them.

    Every process computes that same loss; its own rows pass on the gradient times the number of processes, others'
    none. Gradients are averaged over processes afterwards, which makes it that of the whole.
    """
    if world_size() == 1:
        return rows
    everyone = gather_over_processes(rows)
    everyone[dist.get_rank()] = rows + (world_size() - 1) * (rows - rows.detach())
    return everyone.flatten(0, 1)


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """The sum over processes with its gradient: each gets the sum of what all processes' losses have at it.

    Gradients are averaged over processes afterwards, which makes it that of the mean of their losses.
    """
    return tensor if world_size() == 1 else _SumOfAll.apply(tensor)


class _SumOfAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        return sum_over_processes(tensor)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient)
