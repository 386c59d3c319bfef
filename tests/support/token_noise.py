"""The draws of a stored training and sampling of masked continuous tokens, in this project's terms."""

import torch
from torch import Tensor

from pipeline.samplers.unmasking import masked_counts


def ranks_of(orders: Tensor) -> Tensor:
    """The uniform numbers [B, M] that are sorted into these orders."""
    return orders.argsort(dim=-1) / orders.shape[1]


def head_draws(order: Tensor, count: int, time: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Times and noise of the first `count` places of the orders [B, M], from those of rows (copy, image, place)."""
    batch, places = order.shape
    chosen = order[None, :, :count].expand(len(time) // order.numel(), -1, -1)
    time, noise = (value.unflatten(0, (-1, batch, places)) for value in (time, noise))
    time = (time.gather(2, chosen).float() + 0.5) / 1000
    noise = noise.gather(2, chosen[..., None].expand(-1, -1, -1, noise.shape[-1]))
    by_image = lambda value: value.transpose(0, 1).flatten(1, 2)  # noqa: E731
    return {"head.time": by_image(time), "head.noise": by_image(noise)[:, :, None]}


def token_noise(order: Tensor, starts: list[Tensor], steps: list[list[Tensor]]) -> dict[str, Tensor]:
    """Noise by name, [B, M, D], each token's in its place, from that of the rows settled in each iteration.

    `starts` [R, D] and, for every step of the head, `steps` [R or more, D]; what is behind the first R is left out.
    """
    ranks, places = order.argsort(dim=-1), order.shape[1]
    counts = [places, *masked_counts("cosine", places, len(starts))]
    names = ["start", *(f"step_{i}" for i in range(len(steps[0])))]
    noise = {name: torch.zeros(*order.shape, starts[0].shape[-1]) for name in names}
    for step, rows in enumerate(starts):
        leaving = (ranks >= counts[step + 1]) & (ranks < counts[step])
        noise["start"][leaving] = rows
        for i, value in enumerate(steps[step]):
            noise[f"step_{i}"][leaving] = value[: len(rows)]
    return noise
