"""Throughput of a function in images per second."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from pipeline.nn.devices import synchronize


def images_per_second(work: Callable[[], Any], images: int, device: torch.device, repeats: int = 5) -> float:
    """Images a second: the median of `repeats` runs of `work`, which does `images` of them, after one to warm up."""
    seconds = [_time(work, device) for _ in range(repeats + 1)][1:]
    return images / statistics.median(seconds)


def _time(work: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started
