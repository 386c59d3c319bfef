"""What this process runs on: the one Accelerator, and whether it can do a recipe's precision."""

from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from pipeline.recipes.schema import Recipe
from pipeline.runs.sharding import take_sharding
from pipeline.runs.workspace import Workspace

RUNS = Path("runs")


def start(recipe: Recipe) -> Workspace:
    """The workspace of a recipe's run; ValueError when the machine cannot do the precision of a stage."""
    for stage, word in asdict(recipe.precision).items():
        check_precision(word, f"precision.{stage}")
    sharding = take_sharding()
    work = Workspace(RUNS / recipe.name, accelerate(), sharding)
    set_seed(recipe.seed)
    return work


def check_precision(precision: str, place: str = "precision") -> None:
    """ValueError where this machine cannot compute in it."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError(f"{place}=fp16 needs a GPU; set {place}=bf16 or fp32")


def accelerate() -> Accelerator:
    """The accelerator, without a precision, which every stage sets itself, and without models that it divides itself.

    See `pipeline.runs.precision` and `pipeline.runs.sharding`.
    """
    take_sharding()
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
