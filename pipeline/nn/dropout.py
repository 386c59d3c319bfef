"""Dropout whose masks are an argument: functions of seed, step, place and name, like every other draw of training."""

from torch import Tensor

from pipeline.draws import Draws


def dropout(x: Tensor, share: float, draws: Draws | None, name: str) -> Tensor:
    """x [B, ...] with each entry zero with probability `share`, and the others scaled up; x itself without draws.

    `name` tells the layers of a network apart.
    """
    if draws is None or share == 0:
        return x
    return dropped(x, draws.kept(name, tuple(x.shape[1:]), share), share)


def dropped(x: Tensor, kept: Tensor | None, share: float) -> Tensor:
    """x [B, ...] where `kept` (bool, of x's shape) is true, scaled up by 1 / (1 - share); x itself for None."""
    return x if kept is None else x * kept / (1 - share)
