"""Throughput of a function in images per second, and the name of the device."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def images_per_second(work: Callable[[], Any], images: int, device: torch.device, repeats: int = 5) -> float:
    """Images a second: the median of `repeats` runs of `work`, which does `images` of them, after one to warm up."""
    seconds = [_time(work, device) for _ in range(repeats + 1)][1:]
    return images / statistics.median(seconds)


def device_name(device: torch.device) -> str:
    """The name of the GPU, or that of the processor and how many threads torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = named[0] if named else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _time(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
