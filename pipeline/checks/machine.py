"""Whether this machine can hold a recipe's trainings: memory, disk, and batches that its processes can divide."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from pipeline.checks.accumulation import trainings
from pipeline.networks.base import Network
from pipeline.nn.devices import current_device, memory
from pipeline.recipes.building import count_parameters
from pipeline.recipes.schema import Recipe
from pipeline.tokenizers.base import Tokenizer
from pipeline.validation import SettingError

BYTES_TRAINED = 20  # per trained fp32 parameter: weight, gradient, two moments of AdamW, average
BYTES_FROZEN = 4


def check_processes(recipe: Recipe, processes: int) -> None:
    """ValueError where the processes cannot divide a batch of a training, in micro-batches, evenly."""
    for place, loop, _ in trainings(recipe):
        if loop.batch % (processes * loop.accumulate):
            raise SettingError(
                f"{place}.batch",
                f" is {loop.batch}, which does not divide into {processes} processes x {loop.accumulate} micro-batches;"
                f" give a multiple of {processes * loop.accumulate}",
            )


def memory_needed(tokenizer: Tokenizer | None, network: Network | None) -> dict[str, int]:
    """Bytes that each training needs for parameters, gradients, optimizer and averages; a frozen tokenizer has none."""
    needed = {} if tokenizer is None else {"tokenizer": bytes_of(tokenizer, tokenizer.frozen_parameters())}
    return needed if network is None else needed | {"generator": bytes_of(network)}


def bytes_of(model: nn.Module, frozen: Iterable[nn.Parameter] = ()) -> int:
    fixed = sum(parameter.numel() for parameter in frozen)
    return fixed * BYTES_FROZEN + (count_parameters(model) - fixed) * BYTES_TRAINED


def memory_lacking(tokenizer: Tokenizer | None, network: Network | None) -> list[str]:
    """A line for each training that needs more memory than this machine has."""
    here, needed = memory_here(), memory_needed(tokenizer, network)
    return [
        f"the {name} needs {in_bytes(most)} to train, without activations, and this machine has {in_bytes(here)}"
        for name, most in needed.items()
        if most > here
    ]


def memory_here() -> int:
    """Bytes that a training has on the device that it runs on."""
    return memory(current_device())[1]


def disk_here(folder: Path) -> int:
    """Bytes that are free where `folder` is or will be."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free


def in_bytes(count: float) -> str:
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
