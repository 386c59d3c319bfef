"""Samples images from the trained generator and decoder."""

from pathlib import Path
from typing import Any

from pipeline.recipes.schema import Recipe
from pipeline.runs.milestones import chosen_decoder
from pipeline.runs.workspace import Workspace, plain
from pipeline.sampling.held_out_prompts import find_text, fingerprint_prompts
from pipeline.sampling.many_images import assemble, plan_recipe, sample_images
from pipeline.training.starting_weights import fingerprints

READS = ("decoder", "generator")
READS_WHERE_MADE = ("text",)
WRITES = "samples"
IMAGES = ()
PRECISION = "sample"


def uses(recipe: Recipe) -> Any:
    prompts = fingerprint_prompts(recipe)
    return recipe.sample, fingerprints(plain(recipe.sample.weak)), recipe.seed, recipe.precision.sample, prompts


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    decoder, text = chosen_decoder(recipe, work.artefact("decoder")), find_text(recipe, work)
    pipe = assemble(recipe, decoder, work.artefact("generator"), text)
    sample_images(pipe, plan_recipe(recipe, pipe, text), out, work.accelerator)
