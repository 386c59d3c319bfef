"""Encodes the training images.

The tokenizer is saved beside the codes, with the mean and std that bring them to unit scale; with latents.store=false
it is saved alone.
"""

from pathlib import Path
from typing import Any

import torch

from pipeline.captions.table import open_captions
from pipeline.components import build, find
from pipeline.files.shards import write_manifest
from pipeline.files.writing import new_folder
from pipeline.frozen.class_token import ClassToken
from pipeline.frozen.networks import FrozenNetworks
from pipeline.images.reading import Images
from pipeline.latents.encoding import EncodingPlan, describe, encode
from pipeline.latents.scale import measure
from pipeline.recipes.building import build_network, hidden_layout
from pipeline.recipes.schema import Recipe
from pipeline.runs.workspace import Workspace, plain
from pipeline.teachers.base import Tap
from pipeline.tokenizers.base import Tokenizer
from pipeline.training import starting_weights
from pipeline.training.phase_parts import attachment_of, generator_nodes, generator_taps

READS = ("joint",)
READS_WHERE_MADE = ("text",)
WRITES = "latents"
IMAGES = ("train",)
PRECISION = "latents"


def uses(recipe: Recipe) -> Any:
    inputs = (recipe.data.preparation, recipe.latents, recipe.seed, recipe.precision.latents)
    if recipe.latents.class_token is not None:
        width = recipe.generator.objective.get("class_token")
        inputs = (*inputs, width, starting_weights.fingerprints(recipe.latents.class_token), recipe.weights.files)
    if not recipe.latents.features:
        return inputs
    generator = recipe.generator
    return (
        *inputs,
        generator.losses,
        generator.network,
        starting_weights.fingerprints(plain(generator.losses)),
        recipe.weights.files,
    )


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    images = Images(recipe.data, "train", open_captions(recipe, work.artefact, "train", WRITES))
    networks = FrozenNetworks(recipe, images, out, work.accelerator)
    feature = networks.load(ClassToken(recipe)) if recipe.latents.class_token is not None else None
    tokenizer = load_scaled_tokenizer(recipe, work, out / "tokenizer", images)
    taps = taps_of_generator(networks, tokenizer) if recipe.latents.features else {}
    plan = EncodingPlan(recipe.latents, recipe.seed, recipe.precision.latents, taps, feature)
    if recipe.latents.store:
        encode(tokenizer, images, plan, out, work.accelerator)
    elif work.accelerator.is_main_process:
        write_manifest(out, describe(tokenizer, images, plan))


def taps_of_generator(networks: FrozenNetworks, tokenizer: Tokenizer) -> dict[str, tuple[Tap, list[int]]]:
    """By term of the generator's losses, the map of its teacher and the grid that it is wanted on."""
    recipe = networks.recipe
    objective = build("objectives", recipe.generator.objective)
    with torch.device("meta"):
        network = build_network(recipe, tokenizer.spec, 1, objective)
    taps = generator_taps(networks)
    blocks = {term: attachment_of(node).block for term, node in generator_nodes(recipe).items()}
    return {term: (tap, hidden_layout(network, blocks[term])[0]) for term, tap in taps.items()}


def load_scaled_tokenizer(recipe: Recipe, work: Workspace, folder: Path, images: Images) -> Tokenizer:
    """The tokenizer with its codes' mean and std: from `folder` if it is there already, else measured and saved.

    Those that it came with stay where a generator knows them: one that it was trained with, or, by the recipe's
    `latents.statistics`, an imported one. ValueError where it came with none. With `latents.scale` they are 0 and its
    inverse.
    """
    cls = find("tokenizers", recipe.tokenizer.model["kind"])
    if not folder.exists():
        tokenizer = cls.from_pretrained(work.artefact("joint"))
        if recipe.joint is None and recipe.latents.scale is not None:
            tokenizer.mean.zero_(), tokenizer.std.fill_(1 / recipe.latents.scale)
        elif recipe.joint is None and recipe.latents.statistics == "measured":
            plan = EncodingPlan(recipe.latents, recipe.seed, recipe.precision.latents)
            mean, std = measure(cls.from_pretrained(work.artefact("joint")), images, plan, work.accelerator)
            tokenizer.mean.copy_(mean), tokenizer.std.copy_(std)
        elif not (tokenizer.spec.vocab or tokenizer.mean.any() or (tokenizer.std != 1).any()):
            raise ValueError("the tokenizer came with no mean and std of its codes; set latents.statistics=measured")
        if work.accelerator.is_main_process:
            with new_folder(folder) as draft:
                tokenizer.save_pretrained(draft)
    work.accelerator.wait_for_everyone()
    return cls.from_pretrained(folder)
