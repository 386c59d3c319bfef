"""Dropout whose masks are an argument: functions of seed, step, place and name, like every other draw of training."""

from torch import Tensor


def apply_dropout(x: Tensor, kept: Tensor | None, share: float) -> Tensor:
    """x [B, ...] where `kept` (bool, of x's shape, see `Draws.keep_mask`) is true, scaled up by 1 / (1 - share).

    x itself for None. Masks are drawn outside of compiled blocks, which so stay functions of tensors.
    """
    return x if kept is None else x * kept / (1 - share)
