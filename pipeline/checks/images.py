"""Whether a recipe fits its images: how many there are, and of which classes, known without decoding one."""

from collections.abc import Mapping

from pipeline.captions.collecting import NO_CAPTIONS
from pipeline.checks.posttraining import check_held_out
from pipeline.checks.previews import check_held_out_images
from pipeline.code import LatentSpec
from pipeline.images.facts import SplitFacts
from pipeline.metrics.base import HELD_OUT, Metric, SampleMetric, TokenizerMetric, report_metrics
from pipeline.recipes.building import count_condition_classes, reads_captions
from pipeline.recipes.sampling import HELD_OUT as PROMPTS
from pipeline.recipes.schema import Recipe
from pipeline.validation import SettingError


def check_images(recipe: Recipe, facts: Mapping[str, SplitFacts]) -> None:
    """ValueError with one line where the images of a split cannot serve what the recipe asks for."""
    train, held_out = facts["train"], facts["held_out"]
    if not train.images:
        raise SettingError("data.source", ": no image is left to train on; hold out fewer, or name other images")
    count_condition_classes(recipe, len(train.class_names))
    if recipe.text is not None and not (train.has_captions or held_out.has_captions):
        raise SettingError("data.source", NO_CAPTIONS)
    empty = [name for name, count in zip(train.class_names, train.class_counts) if not count]
    if empty and recipe.conditional:
        raise SettingError("data.source", f": no training image is of the class {empty[0]!r}, which would be sampled")
    if train.class_names != held_out.class_names:
        raise SettingError(
            "data.source",
            f": the training images have the classes {', '.join(train.class_names) or 'none'}, the held-out ones"
            f" {', '.join(held_out.class_names) or 'none'}; they must agree",
        )
    if recipe.evaluate.reference == "held_out" and not held_out.images:
        raise SettingError("evaluate.reference", " is held_out, and no image is held out; set data.source.held_out=0.1")
    asked = recipe.generator is not None and reads_captions(recipe, "samples")
    if asked and recipe.sample.prompts == PROMPTS and not held_out.images:
        raise SettingError("sample.prompts", " is held_out, and no image is held out; name a file of prompts")
    check_held_out_images(recipe, facts)
    if recipe.posttrain is not None:
        check_held_out(recipe.posttrain, train.images)


def numbers_left_out(recipe: Recipe, facts: Mapping[str, SplitFacts], spec: LatentSpec) -> list[str]:
    """A line for each metric of the report that has no numbers of so few images."""
    most, sizes = recipe.evaluate.images, {split: known.images for split, known in facts.items()}
    held_out = {HELD_OUT: min(most, sizes["held_out"])}
    sets = {"samples": min(most, recipe.sample.images), "training images": min(most, sizes["train"])} | held_out
    of_samples = report_metrics(recipe.evaluate, SampleMetric) if recipe.generator is not None else []
    of_tokenizer = [m for m in report_metrics(recipe.evaluate, TokenizerMetric) if m.why_left_out(spec) is None]
    pairs: list[tuple[Metric, dict[str, int]]] = [
        *((metric, sets) for metric in of_samples),
        *((metric, held_out) for metric in of_tokenizer),
    ]
    fewer = recipe.evaluate.neighbour_images
    told = [
        (m, {title: min(there, fewer) if m.of_pairs else there for title, there in sets.items()}) for m, sets in pairs
    ]
    return [f"{metric.name}: {why}" for metric, images in told if (why := metric.why_too_few(images)) is not None]
