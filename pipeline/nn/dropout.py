"""Dropout whose masks are an argument; they are functions of seed, step, position in the batch and name."""

from torch import Tensor


def apply_dropout(x: Tensor, kept: Tensor | None, rate: float) -> Tensor:
    """x [B, ...] where `kept` (bool, of x's shape, see `Draws.keep_mask`) is true, scaled up by 1 / (1 - rate).

    x itself for None. Masks are drawn outside of compiled blocks, which thus are functions of tensors.
    """
    return x if kept is None else x * kept / (1 - rate)
