"""The numbers of one metric, of which those that cannot be computed are left out, with the reason."""

import math
from typing import Any

import torch

from pipeline.metrics.base import Measurement, Metric

NOT_COMPUTABLE = (ValueError, ArithmeticError, torch.linalg.LinAlgError)


def measure_metric(metric: Metric, inputs: Any, left_out: dict[str, str]) -> dict[str, Measurement]:
    """The numbers of a metric by key; `left_out` takes in, by name, why one of them or all cannot be computed."""
    if (why := metric.why_too_few(inputs.images)) is not None:
        left_out[metric.name] = why
        return {}
    try:
        numbers = dict(metric.measure(inputs))
    except NOT_COMPUTABLE as error:
        left_out[metric.name] = " ".join(str(error).split())
        return {}
    left_out |= {key: f"it is {number.value}" for key, number in numbers.items() if not math.isfinite(number.value)}
    return {key: without_infinite_parts(number) for key, number in numbers.items() if key not in left_out}


def without_infinite_parts(number: Measurement) -> Measurement:
    """The measurement without a floor, a ratio or details that are not finite, which no file of numbers can hold."""
    number.details = {name: value for name, value in number.details.items() if math.isfinite(value)}
    for name in ("held_out", "ratio"):
        value = getattr(number, name)
        setattr(number, name, value if value is not None and math.isfinite(value) else None)
    return number


def describe_left_out(left_out: dict[str, str]) -> list[str]:
    """A line for each."""
    return [f"{name}: {why}" for name, why in left_out.items()]
