"""What this process runs on: the one Accelerator, and whether it can do a recipe's precision."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed

from pipeline.nn.devices import USE_CPU, autocast_types, current_device, device_name, uses_cpu
from pipeline.recipes.schema import Recipe
from pipeline.runs.precision import DTYPES
from pipeline.runs.sharding import take_sharding
from pipeline.runs.workspace import Workspace

RUNS = Path("runs")


def start(recipe: Recipe) -> Workspace:
    """The workspace of a recipe's run; ValueError when the machine cannot do the precision of a stage."""
    for stage, word in asdict(recipe.precision).items():
        check_precision(word, f"precision.{stage}")
    sharding = take_sharding()
    root = RUNS / recipe.name
    work = Workspace(root, accelerate(recipe.trackers, root), sharding)
    set_seed(recipe.seed)
    return work


def check_precision(precision: str, place: str = "precision") -> None:
    """ValueError where the device that this process computes on cannot train in it."""
    if DTYPES[precision] == torch.float32:
        return
    device = current_device()
    types = autocast_types(device)
    if DTYPES[precision] not in types:
        words = ["fp32", *(word for word, dtype in DTYPES.items() if dtype in types)]
        raise ValueError(
            f"{place}={precision}: {device.type} ({device_name(device)}) does not train in it; set {place} to"
            f" {' or '.join(words)}"
        )


def lacking_precisions(recipe: Recipe) -> list[str]:
    """A line for each stage whose precision the device that this process computes on does not have."""
    lines = []
    for stage, word in asdict(recipe.precision).items():
        try:
            check_precision(word, f"precision.{stage}")
        except ValueError as error:
            lines.append(str(error))
    return lines


def accelerate(trackers: Sequence[str] = (), root: Path = RUNS) -> Accelerator:
    """The accelerator, without a precision, which every stage sets itself, and without models that it divides itself.

    See `pipeline.runs.precision` and `pipeline.runs.sharding`. What `trackers` write lies in trackers/ of `root`.
    ValueError where several processes were launched on devices that cannot reach each other.
    """
    take_sharding()
    folder = ProjectConfiguration(logging_dir=str(root / "trackers"))
    told = {"log_with": list(trackers), "project_config": folder} if trackers else {}
    accelerator = Accelerator(cpu=uses_cpu(), mixed_precision="no", **told)
    launched = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if accelerator.num_processes < launched:
        raise ValueError(
            f"{launched} processes cannot train together on {accelerator.device.type}; start one, or set {USE_CPU}=true"
        )
    return accelerator
