"""Whether this machine can hold a recipe's trainings: memory, disk, and batches that its processes can divide."""

import os
import shutil
from pathlib import Path

import torch

from pipeline.checks.accumulation import trainings
from pipeline.recipes.schema import Recipe
from pipeline.validation import SettingError


def check_processes(recipe: Recipe, processes: int) -> None:
    """ValueError where the processes cannot divide a batch of a training, in micro-batches, evenly."""
    for place, loop, _ in trainings(recipe):
        if loop.batch % (processes * loop.accumulate):
            raise SettingError(
                f"{place}.batch",
                f" is {loop.batch}, which does not divide into {processes} processes x {loop.accumulate} micro-batches;"
                f" give a multiple of {processes * loop.accumulate}",
            )


def memory_here() -> int:
    """Bytes that a training has: of the GPU where there is one, else of this machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def disk_here(folder: Path) -> int:
    """Bytes that are free where `folder` is or will be."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free
