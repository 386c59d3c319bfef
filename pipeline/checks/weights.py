"""Which frozen networks a recipe comes to on this machine: the published ones, or what stands in for them."""

from collections.abc import Iterator

from pipeline.components import Node
from pipeline.features.choice import WEIGHTS, weights_name
from pipeline.frozen.base import FrozenInput
from pipeline.frozen.class_token import PLACE as CLASS_TOKEN
from pipeline.frozen.class_token import ClassToken
from pipeline.frozen.networks import declared_input
from pipeline.recipes.schema import Phase, Recipe
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.vision.weights import locate


def describe_weights(recipe: Recipe) -> list[str]:
    """A line for every place of a recipe that takes a frozen network: which one, and where its weights are."""
    lines = [f"{place}: {network.origin()}" for place, network in frozen_networks(recipe)]
    for kind in recipe.evaluate.features:
        if kind in WEIGHTS:
            name = weights_name(kind, recipe.weights)
            lines.append(f"evaluate.features {kind}: {locate(name, recipe.weights) or 'to be fetched from the hub'}")
    files = [locate(name, recipe.weights) for name in LpipsVgg.FILES]
    measured_by = "LPIPS-VGG" if all(files) and recipe.data.size >= LpipsVgg.SMALLEST else "the judge, which is trained"
    return [*lines, f"perceptual distance of the report: {measured_by}"]


def frozen_networks(recipe: Recipe) -> Iterator[tuple[str, FrozenInput]]:
    """Every frozen network that losses, critics and the class token of a recipe declare, by its place."""
    for slot, place, node in nodes_of(recipe):
        if (declared := declared_input(recipe, slot, node)) is not None:
            yield place, declared
    if recipe.latents.class_token is not None:
        yield CLASS_TOKEN, ClassToken(recipe)


def nodes_of(recipe: Recipe) -> Iterator[tuple[str, str, Node]]:
    """Slot, place and node of every loss and critic."""
    phases: dict[str, Phase] = {f"tokenizer.phases.{name}": phase for name, phase in recipe.tokenizer.phases.items()}
    phases |= {} if recipe.joint is None else {"joint.phase": recipe.joint.phase}
    phases |= {} if recipe.posttrain is None else {"posttrain.phase": recipe.posttrain.phase}
    for place, phase in phases.items():
        for name, node in phase.losses.items():
            yield "losses", f"{place}.losses.{name}", node
        if phase.adversary is not None:
            yield "critics", f"{place}.adversary.critic", phase.adversary.critic
    for name, node in recipe.generator.losses.items():
        yield "losses", f"generator.losses.{name}", node
