"""decoder/ + generator/ -> samples/: the images that the finished line makes."""

from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe
from pipeline.sampling import assemble, plan_recipe, sample_images
from pipeline.training.starting_weights import fingerprints
from pipeline.workspace import Workspace, plain

READS, WRITES = ("decoder", "generator"), "samples"


def uses(recipe: Recipe) -> Any:
    return recipe.sample, fingerprints(plain(recipe.sample.weak)), recipe.seed, recipe.precision


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    pipe = assemble(recipe, work.artefact("decoder"), work.artefact("generator"))
    sample_images(pipe, plan_recipe(recipe, pipe), out, work.accelerator)
