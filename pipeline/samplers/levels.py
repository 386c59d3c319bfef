"""Noise levels that a state is carried down: evenly spaced, shifted, and reported step by step."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

from pipeline.validation import check_positive

Levels = TypeVar("Levels", float, np.ndarray, Tensor)
Velocity = Callable[[Tensor, float], Tensor]  # (z [B, N, C], u) -> dz/du
Report = Callable[[int, float, Tensor], Tensor | None]  # (evaluations done - 1, level reached, state)


def ladder(intervals: int, shift: float = 1.0, start: float = 1.0, end: float = 0.0) -> list[float]:
    """`intervals` + 1 falling noise levels from `start` to `end` * `start`, even before u -> s u / (1 + (s - 1) u).

    `start` and `end` are meant before the shift. With end = 0 they are the levels of diffusers' flow-matching Euler
    scheduler under sigmas = linspace(1, 1/n, n), to the bit: float32, the shift applied in float32.
    """
    falling = np.linspace(1, end, intervals + 1) if end else np.append(np.linspace(1, 1 / intervals, intervals), 0.0)
    return [float(level) for level in shifted((start * falling).astype(np.float32), shift)]


def shifted(u: Levels, shift: float) -> Levels:
    """s u / (1 + (s - 1) u): above 1 the shift keeps longer to the noise (Esser et al., arXiv:2403.03206, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)


def check_shift(shift: float, base: float | None) -> None:
    """ValueError for a shift out of range, and where a base states another one besides."""
    check_positive("shift", shift)
    if base is not None:
        check_positive("shift_base", base)
    if base is not None and shift != 1:
        raise ValueError(f"shift={shift:g} and shift_base={base:g} both state the shift; leave one of them out")


def settled_shift(shape: Sequence[int], shift: float, base: float | None) -> float:
    """The shift of codes [N, C]: as stated, or with a base sqrt(N C / base), as in RAE (arXiv:2510.11690).

    Raises ValueError, as `check_shift`, and where the base is more than there are numbers: the levels would turn
    towards the data, which codes of few numbers do not need.
    """
    check_shift(shift, base)
    if base is None:
        return shift
    if base > math.prod(shape):
        raise ValueError(
            f"shift_base={base:g} is for codes of more numbers: {shape[0]} tokens of {shape[1]} channels make"
            f" {math.prod(shape)}; state a smaller one, for example shift_base={math.prod(shape) / 8:g}"
        )
    return math.sqrt(math.prod(shape) / base)


def unshifted(u: float, shift: float) -> float:
    """The inverse of `shifted`."""
    return u / (shift - (shift - 1) * u)


def reported(report: Report | None, step: int, level: float, z: Tensor) -> Tensor:
    """The state to continue from: what `report` returns, or the one at hand."""
    changed = report(step, level, z) if report else None
    return z if changed is None else changed
