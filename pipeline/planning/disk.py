"""What a run writes on disk: latents, pairs, samples, and checkpoints while it trains."""

import math
from collections.abc import Sequence

from pipeline.checks.machine import disk_here, in_bytes
from pipeline.checks.recipe import CheckedRecipe
from pipeline.components import Node
from pipeline.files.paths import given_path
from pipeline.frozen.networks import declared_input
from pipeline.latents.packing import bytes_of_ids
from pipeline.networks.base import Network
from pipeline.planning.needs import TrainingNeeds
from pipeline.recipes.building import hidden_layout
from pipeline.recipes.schema import Recipe
from pipeline.recipes.text import Text
from pipeline.runs.machine import RUNS
from pipeline.vision.architectures import architecture


def describe_disk(
    recipe: Recipe, checked: CheckedRecipe, network: Network | None, images: int, needs: Sequence[TrainingNeeds]
) -> list[str]:
    """A line for what stays, and one for what is there while trainings run, with what is free."""
    stays = [] if recipe.text is None else [text_on_disk(recipe.text)]
    stays += [] if network is None else of_generation(recipe, checked, network, images)
    reference = given_path(recipe.evaluate.reference)
    if reference.is_file():
        stays.append(f"reference {in_bytes(reference.stat().st_size)}")
    while_training = [f"{one.place} {in_bytes(one.loop.keep * one.checkpoint)}" for one in needs if one.players]
    free = f"{in_bytes(disk_here(RUNS))} are free"
    return [
        "; ".join([*filter(None, [", ".join(stays)]), free]),
        f"while it trains, checkpoints of {', '.join(while_training)}",
    ]


def of_generation(recipe: Recipe, checked: CheckedRecipe, network: Network, images: int) -> list[str]:
    """What stays of codes, pairs and samples, for so many training images; of one where none are known."""
    stays = [latents_on_disk(recipe, checked, network, images)]
    if recipe.posttrain is not None:
        stays.append(f"pairs {in_bytes(recipe.posttrain.pairs * bytes_of_code(recipe, checked))}")
    pixels = recipe.sample.images * math.prod(recipe.data.image_shape) * recipe.data.depth // 8
    return [*stays, f"samples up to {in_bytes(2 * pixels)}"]  # the archive, and PNG files of at most as much


def latents_on_disk(recipe: Recipe, checked: CheckedRecipe, network: Network, images: int) -> str:
    """What all codes take, or those of an image where the number of images is not known."""
    if not recipe.latents.store:
        return "no latents"
    view, note = bytes_of_view(recipe, checked, network)
    code = view * recipe.latents.views
    return (f"latents {in_bytes(images * code)}" if images else f"latents {in_bytes(code)} per image") + note


def text_on_disk(text: Text) -> str:
    """What the features of a caption take; how many distinct ones there are is known once they are collected."""
    spec, scalar = text.spec, 4 if text.precision == "fp32" else 2
    caption = spec.tokens * (spec.layers * spec.dim * scalar + 1) + spec.pooled * scalar  # and a byte of the mask
    return f"text {in_bytes(caption)} per distinct caption"


def bytes_of_code(recipe: Recipe, checked: CheckedRecipe) -> int:
    """Of one code as the store has it."""
    spec, scalar = checked.spec, 4 if recipe.latents.precision == "fp32" else 2
    width = 1 if recipe.latents.posterior != "moments" else 2
    return bytes_of_ids(spec) if spec.vocab else spec.tokens * spec.dim * width * scalar


def bytes_of_view(recipe: Recipe, checked: CheckedRecipe, network: Network) -> tuple[int, str]:
    """Of one view of an image, and what is to be said of it."""
    scalar = 4 if recipe.latents.precision == "fp32" else 2
    code = bytes_of_code(recipe, checked) + checked.generator.objective.class_token * scalar
    if not recipe.latents.features:
        return code, ""
    features = [stored_features(recipe, node, network) for node in recipe.generator.losses.values()]
    note = " without features, for the teacher's width is not known here" if None in features else " with features"
    return code + sum(count or 0 for count in features) * scalar, note


def stored_features(recipe: Recipe, node: Node, network: Network) -> int | None:
    """Numbers that a teacher's features of one view hold; None where its width is not known on this machine."""
    declared = declared_input(recipe, "losses", node)
    width, block = declared.width(), declared.component.attachment_of(declared.arguments).block
    if width is None and (config := architecture(declared.teacher, recipe.weights.files)) is not None:
        width = config.get("hidden_size")
    grid, _ = hidden_layout(network, block)
    return None if width is None else math.prod(grid) * width
