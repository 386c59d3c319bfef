"""What is said of many values at once: their mean, and the smallest and the largest by name."""

import math

from torch import Tensor


def mean(rows: Tensor) -> float:
    """The mean of all values, computed in float64."""
    return rows.double().mean().item()


def extremes(values: Tensor, names: list[str] | None = None) -> dict[str, float]:
    """Values [n] by name, as far as they are finite; of more than 16 the smallest, the median and the largest."""
    names = names or [f"channel_{i}" for i in range(len(values))]
    if len(values) <= 16:
        return {name: value for name, value in zip(names, values.tolist()) if math.isfinite(value)}
    values = values[values.isfinite()]
    return {"least": values.min().item(), "median": values.median().item(), "most": values.max().item()}
