"""Which weights a recipe comes to on this machine: the published ones, what stands in for them, or none."""

from collections.abc import Iterator

from pipeline.checks.nodes import named_models, nodes_of
from pipeline.components import find
from pipeline.features.choice import WEIGHTS, name_here
from pipeline.features.statistics_file import missing_reference
from pipeline.frozen.base import FrozenInput
from pipeline.frozen.class_token import PLACE as CLASS_TOKEN
from pipeline.frozen.class_token import ClassToken
from pipeline.frozen.networks import declared_input
from pipeline.metrics.base import TokenizerMetric, report_metrics
from pipeline.recipes.schema import Recipe
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.validation import SettingError
from pipeline.vision.weights import locate, remedy

REPORT = "perceptual distance of the report"
WITHOUT_WEIGHTS = "pixels"  # features
Missing = dict[tuple[str, ...], list[str]]  # the places that take weights, by the names of these


def describe_weights(recipe: Recipe) -> list[str]:
    """A line for every place that takes a frozen network, or first weights: which ones, and where they are."""
    lines, files = [f"{place}: {network.origin()}" for place, network in frozen_networks(recipe)], recipe.weights.files
    lines += [f"{place}: {model.origin()}" for place, model in named_models(recipe)]
    for kind in recipe.evaluate.features:
        if kind in WEIGHTS:
            name = name_here(kind, files)
            found = "missing" if name is None else locate(name, files) or "to be fetched from the hub"
            lines.append(f"evaluate.features: {kind}, {found}")
    if measures_perception(recipe):
        missing = [name for name in LpipsVgg.FILES if locate(name, files) is None]
        required = recipe.weights.require and min(recipe.data.sides) >= LpipsVgg.SMALLEST
        instead = f"LPIPS-VGG, missing {' and '.join(missing)}" if required else "the judge, which is trained"
        here = not missing and min(recipe.data.sides) >= LpipsVgg.SMALLEST
        lines.append(f"{REPORT}: {'LPIPS-VGG' if here else instead}")
    return lines


def check_weights(recipe: Recipe) -> None:
    """SettingError that names all that `all_missing` tells, and the settings that do without, where there are such."""
    lines, settings = all_missing(recipe), settings_without(recipe)
    without = f"; what can be done without is left out by: {' '.join(settings)}" if settings else ""
    if len(lines) > 1:
        many = "; ".join(f"({number}) {line}" for number, line in enumerate(lines, start=1))
        raise SettingError("weights", f": what this recipe needs is not all on this machine: {many}{without}")
    for line in lines:
        raise ValueError(f"{line}{without}")


def all_missing(recipe: Recipe) -> list[str]:
    """A line for each network, first weights and reference that are not on this machine: places, and how to have it.

    Those that a recipe names are needed; those that small classifiers of the images can stand in for, under
    `weights.require`. A model of the hub is fetched when it is needed, and never missing.
    """
    named, replaceable = missing_weights(recipe)
    lines = [tell_missing(names, places) for names, places in (named | replaceable).items()]
    if recipe.text is not None and (lacks := find("text_encoders", recipe.text.encoder["kind"]).lacks()):
        lines.append(f"text.encoder: {recipe.text.encoder['kind']} {lacks}")
    starts: dict[str, list[str]] = {}
    for place, model in named_models(recipe):
        if model.missing:
            starts.setdefault(model.remedy(), []).append(place)
    lines += [f"{', '.join(places)}: {line}" for line, places in starts.items()]
    return lines + list(filter(None, [missing_reference(recipe.evaluate.reference)]))


def settings_without(recipe: Recipe) -> list[str]:
    """Settings with which less of what is missing is needed.

    Small classifiers of the images stand in for teachers and LPIPS, and samples are measured by features and against
    images that need no weights.
    """
    evaluate, files = recipe.evaluate, recipe.weights.files
    _, replaceable = missing_weights(recipe)
    settings = ["weights.require=false"] if replaceable and recipe.weights.require else []
    here = [kind for kind in evaluate.features if kind not in WEIGHTS or name_here(kind, files) is not None]
    if len(here) < len(evaluate.features):
        settings.append(f"evaluate.features=[{','.join(here or [WITHOUT_WEIGHTS])}]")
    return settings + (["evaluate.reference=train"] if missing_reference(evaluate.reference) else [])


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
    if recipe.weights.require and measures_perception(recipe) and min(recipe.data.sides) >= LpipsVgg.SMALLEST:
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
