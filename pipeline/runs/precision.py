"""The arithmetic that a word of a recipe's `precision` names, set and put back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.nn.full_precision import autocast_kind
from pipeline.recipes.arithmetic import Precision

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which networks compute in bf16 or fp16, where `precision` is one of these."""
    narrow = DTYPES[precision] != torch.float32
    return torch.autocast(autocast_kind(device), DTYPES[precision] if narrow else torch.bfloat16, enabled=narrow)


@contextmanager
def rounding(precision: Precision) -> Iterator[None]:
    """Products of float32 matrices and convolutions in TF32, unless `precision` is fp32; as before when the block ends.

    It is a setting of the whole process. With fp32 convolutions are not rounded either, which PyTorch does by default.
    """
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before):
            backend.allow_tf32 = allowed


@contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """Both `rounding` and `autocast`: networks evaluated in the block compute as `precision` says."""
    with rounding(precision), autocast(device, precision):
        yield


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which nothing is narrowed, for what has to be exact, and for backward passes."""
    return torch.autocast(autocast_kind(device), enabled=False)
