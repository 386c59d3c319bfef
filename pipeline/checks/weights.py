"""Which frozen networks a recipe comes to on this machine: the published ones, what stands in for them, or none."""

from collections.abc import Iterator

from pipeline.components import Node
from pipeline.features.choice import WEIGHTS, name_here
from pipeline.features.statistics_file import missing_reference
from pipeline.frozen.base import FrozenInput
from pipeline.frozen.class_token import PLACE as CLASS_TOKEN
from pipeline.frozen.class_token import ClassToken
from pipeline.frozen.networks import declared_input
from pipeline.metrics.base import TokenizerMetric, report_metrics
from pipeline.recipes.schema import Phase, Recipe
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.validation import SettingError
from pipeline.vision.weights import locate, remedy

REPORT = "perceptual distance of the report"
Missing = dict[tuple[str, ...], list[str]]  # the places that take weights, by the names of these


def describe_weights(recipe: Recipe) -> list[str]:
    """A line for every place of a recipe that takes a frozen network: which one, and where its weights are."""
    lines, files = [f"{place}: {network.origin()}" for place, network in frozen_networks(recipe)], recipe.weights.files
    for kind in recipe.evaluate.features:
        if kind in WEIGHTS:
            name = name_here(kind, files)
            found = "missing" if name is None else locate(name, files) or "to be fetched from the hub"
            lines.append(f"evaluate.features: {kind}, {found}")
    if measures_perception(recipe):
        missing = [name for name in LpipsVgg.FILES if locate(name, files) is None]
        required = recipe.weights.require and recipe.data.size >= LpipsVgg.SMALLEST
        instead = f"LPIPS-VGG, missing {' and '.join(missing)}" if required else "the judge, which is trained"
        here = not missing and recipe.data.size >= LpipsVgg.SMALLEST
        lines.append(f"{REPORT}: {'LPIPS-VGG' if here else instead}")
    return lines


def check_weights(recipe: Recipe) -> None:
    """SettingError that names all networks which are not on this machine, their places, and how to have each.

    Those that a recipe names are needed; those that small classifiers of the images can stand in for, under
    `weights.require`. A reference that is not there is told as well.
    """
    named, replaceable = missing_weights(recipe)
    lines = [tell_missing(names, places) for names, places in (named | replaceable).items()]
    lines += filter(None, [missing_reference(recipe.evaluate.reference)])
    if replaceable and recipe.weights.require:
        lines.append("weights.require=false lets small classifiers of the images stand in for teachers and LPIPS")
    if len(lines) > 1:
        many = "; ".join(f"({number}) {line}" for number, line in enumerate(lines, start=1))
        raise SettingError("weights", f": what this recipe needs is not all on this machine: {many}")
    for line in lines:
        raise ValueError(line)


def missing_weights(recipe: Recipe) -> tuple[Missing, Missing]:
    """The weights that are not on this machine: those that the recipe names, and those it takes where they are."""
    named: Missing = {}
    replaceable: Missing = {}
    for place, network in frozen_networks(recipe):
        if network.missing and (recipe.weights.require or not network.replaceable):
            group = replaceable if network.replaceable else named
            group.setdefault(tuple(network.missing), []).append(place)
    files = recipe.weights.files
    for kind in recipe.evaluate.features:
        if kind in WEIGHTS and name_here(kind, files) is None:
            named.setdefault(WEIGHTS[kind][:1], []).append("evaluate.features")
    if recipe.weights.require and measures_perception(recipe) and recipe.data.size >= LpipsVgg.SMALLEST:
        missing = tuple(name for name in LpipsVgg.FILES if locate(name, files) is None)
        if missing:
            replaceable.setdefault(missing, []).append(REPORT)
    return named, replaceable


def tell_missing(names: tuple[str, ...], places: list[str]) -> str:
    remedies = "; ".join(remedy(name) for name in names)
    return f"{', '.join(places)}: the weights {' and '.join(names)} are not on this machine; {remedies}"


def measures_perception(recipe: Recipe) -> bool:
    """Whether the report has the perceptual distance of reconstructions."""
    return any(metric.name == "perceptual_distance" for metric in report_metrics(recipe.evaluate, TokenizerMetric))


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
