"""The learning rate of a step: up from its first value, along the peak, and down to its last."""

import math

from pipeline.recipes.loops import Rate


def learning_rate(rate: Rate, step: int, steps: int) -> float:
    """That of a player's step number `step` of `steps` (0 is its first; before that it is 0).

    A linear warm-up to the peak, which is reached at the last of its steps, the peak for `hold` steps, then the
    schedule down to `final` of it.
    """
    if step < 0:
        return 0.0
    if step < rate.warmup:
        return rate.peak * (rate.first + (1 - rate.first) * (step + 1) / rate.warmup)
    start = rate.warmup + rate.hold
    done = (step - start) / max(1, (rate.end or steps) - start)
    done = min(1.0, max(0.0, done))
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[rate.schedule]
    return rate.peak * (left if rate.schedule == "constant" else rate.final + (1 - rate.final) * left)
