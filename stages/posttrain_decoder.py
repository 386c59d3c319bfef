"""latents/ + generator/ -> decoder/: the tokenizer whose decoder knows what the generator makes."""

import shutil
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe
from pipeline.workspace import Workspace

READS, WRITES = ("latents",), "decoder"


def uses(recipe: Recipe) -> Any:
    return (recipe.posttrain,)


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    """With `posttrain: null` the tokenizer passes through as it is, so that no later stage has a branch."""
    if work.accelerator.is_main_process:
        shutil.copytree(work.artefact("latents") / "tokenizer", out, dirs_exist_ok=True)
