"""Samples images from the trained generator and decoder."""

from pathlib import Path
from typing import Any

from pipeline.recipes.schema import Recipe
from pipeline.runs.milestones import chosen_decoder
from pipeline.runs.workspace import Workspace, plain
from pipeline.sampling.many_images import assemble, plan_recipe, sample_images
from pipeline.training.starting_weights import fingerprints

READS = ("decoder", "generator")
READS_WHERE_MADE = ("text",)
WRITES = "samples"
IMAGES = ()
PRECISION = "sample"


def uses(recipe: Recipe) -> Any:
    return recipe.sample, fingerprints(plain(recipe.sample.weak)), recipe.seed, recipe.precision.sample


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    pipe = assemble(recipe, chosen_decoder(recipe, work.artefact("decoder")), work.artefact("generator"))
    sample_images(pipe, plan_recipe(recipe, pipe), out, work.accelerator)
