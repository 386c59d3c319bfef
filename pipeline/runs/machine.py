"""What this process runs on: the one Accelerator, made with the recipe's precision."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from pipeline.recipes.schema import Recipe
from pipeline.runs.workspace import Workspace

RUNS = Path("runs")


def start(recipe: Recipe) -> Workspace:
    """The workspace of a recipe's run; ValueError when the machine cannot do the recipe's precision."""
    accelerator = accelerate(recipe.precision)
    set_seed(recipe.seed)
    return Workspace(RUNS / recipe.name, accelerator)


def accelerate(precision: str) -> Accelerator:
    cpu = not torch.cuda.is_available()
    if precision == "fp16" and cpu:
        raise ValueError("precision=fp16 needs a GPU (on a CPU it would silently be fp32); set precision=bf16 or fp32")
    return Accelerator(cpu=cpu, mixed_precision="no" if precision == "fp32" else precision)
