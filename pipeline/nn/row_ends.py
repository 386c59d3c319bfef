"""Rows of tokens of which each image has a number of its own, in as many places for all of them."""

import torch
from torch import Tensor


def before_end(ids: Tensor, end: int) -> Tensor:
    """Which places of ids [B, N] hold tokens, bool: those before the first that is `end`."""
    return (ids != end).cumprod(dim=1).bool()


def through_end(ids: Tensor, end: int) -> Tensor:
    """Which places of ids [B, N] are not known from those before them, bool: the first that is `end` is the last."""
    return torch.cat([torch.ones_like(ids[:, :1], dtype=torch.bool), before_end(ids, end)[:, :-1]], dim=1)


def before_zeros(z: Tensor) -> Tensor:
    """Which places of vectors [B, N, C] hold tokens, bool: those before the first that is zero."""
    return (z != 0).any(dim=2).cumprod(dim=1).bool()


def pack(tokens: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The kept ones of tokens [B, N, C] in their order, [B, N, C], and which places they fill, [B, N] bool.

    Further places repeat them from the first on, so that whatever counts tokens sees each of an image as often as every
    other, but for one. Of `kept` [B, N] bool each image must have a token.
    """
    count = kept.sum(dim=1, keepdim=True)
    places = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True).gather(1, places % count)
    return tokens.gather(1, order[..., None].expand_as(tokens)), places < count
