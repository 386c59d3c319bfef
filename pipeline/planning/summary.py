"""What `check` prints of a recipe: parameters, shapes, memory, disk and time, known before training."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from pipeline.checks.accumulation import dependent_on_accumulation, trainings
from pipeline.checks.line import CLASSES, CheckedLine, check_line, count_classes
from pipeline.checks.machine import check_processes, in_bytes, memory_here
from pipeline.checks.recipe import CheckedRecipe, check_recipe
from pipeline.checks.weights import all_missing, check_weights
from pipeline.code import LatentSpec
from pipeline.components import find
from pipeline.datasets.base import MissingImages
from pipeline.images.facts import SPLITS, SplitFacts, split_facts
from pipeline.nn.devices import current_device, describe, device_count
from pipeline.planning.disk import describe_disk
from pipeline.planning.needs import TrainingNeeds, needs_of
from pipeline.planning.timing import time_step
from pipeline.planning.trainings import planned
from pipeline.ranges import Count, Positive, RangedFields
from pipeline.recipes.building import count_parameters
from pipeline.recipes.schema import Recipe
from pipeline.runs.machine import lacking_precisions
from pipeline.tokenizers.base import Tokenizer

Rows = Iterator[tuple[str, str]]  # titles and texts
GIGABYTE = 1e9


@dataclass
class CheckSettings(RangedFields):
    """For which machine `check` counts, beside the settings of the recipe."""

    processes: Count | None = None  # GPUs over all machines; null: those of this one, or 1
    memory: Positive = 80.0  # GB of each


def print_check(recipe: Recipe, settings: CheckSettings) -> None:
    """Print what a recipe is and asks for; builds without weights and writes nothing.

    Raises ValueError with one line for all that is wrong with the recipe or its images; images that are not on this
    machine are said to be missing. Weights that are missing are such a line too, after all has been printed; without
    `weights.require`, and where there are no images to train on either, they are rows like the others.
    """
    checked = check_recipe(recipe)
    facts, note = look_at_images(recipe)
    line = check_line(recipe, checked, facts)
    processes = settings.processes or device_count()
    check_processes(recipe, processes)
    classes = count_classes(recipe, facts)
    images = facts["train"].images if facts else 0
    show(("recipe", recipe.name), ("images", note))
    show(*parts(recipe, checked, line), *(("weights", text) for text in line.weights))
    show(*(("encoding", text) for text in encoding(recipe, images)))
    show(("training", "; ".join(passes(recipe, images))), ("workers", workers(recipe, processes)))
    needs = []
    for one in needs_of(recipe, checked, classes):
        needs.append(one)
        show(("memory", memory(one, processes, settings.memory * GIGABYTE)))
    show(("device", describe(current_device())), *(("warning", text) for text in lacking_precisions(recipe)))
    show(("memory", f"this machine has {in_bytes(memory_here())}{' per device' if device_count() > 1 else ''}"))
    show(("time", times(recipe, checked, classes, needs)))
    show(*(("disk", text) for text in describe_disk(recipe, checked, line.network, images, needs)))
    show(*sampling(recipe, checked))
    show(*(("batches", str(training)) for training in dependent_on_accumulation(recipe)))
    show(*(("left out", text) for text in line.left_out), *(("warning", text) for text in line.warnings))
    if not facts and not recipe.weights.require:
        show(*(("missing", text) for text in all_missing(recipe)))
    show(("output", f"runs/{recipe.name}/"))
    if facts or recipe.weights.require:
        check_weights(recipe)


def show(*rows: tuple[str, str]) -> None:
    for title, text in rows:
        print(f"{title:<12}{text}", flush=True)


def parts(recipe: Recipe, checked: CheckedRecipe, line: CheckedLine) -> Rows:
    """What the line is made of."""
    if recipe.text is not None:
        yield "text", describe_text(recipe)
    tokenizer, network, spec = line.tokenizer, line.network, checked.spec
    parts_of_row = spec.segments or [(tokens,) for tokens in spec.levels] or [spec.grid]
    grid = " + ".join("x".join(map(str, part)) for part in parts_of_row)
    yield "tokenizer", f"{checked.tokenizer.__name__}, {'weights given' if tokenizer is None else sizes(tokenizer)}"
    most = "at most " if spec.ends else ""
    yield "latents", f"{most}{spec.tokens} tokens ({grid}) of {spec.dim} channels" + codebook(spec)
    if checked.generator is None:
        yield "generator", "none: the line ends with the tokenizer"
        return
    yield "generator", f"{checked.generator.network.__name__}, {million(count_parameters(network))} parameters"
    yield "objective", type(checked.generator.objective).__name__
    if recipe.joint is not None:
        weights = ", ".join(f"{weight:g} {term}" for term, weight in recipe.joint.alignment.items())
        loop = recipe.joint.phase.loop
        yield "joint", f"{loop.steps:,} steps of {loop.batch} images, the tokenizer by {weights}"


def describe_text(recipe: Recipe) -> str:
    """The text encoder and the shape of its features."""
    spec = recipe.text.spec
    layers = f" ({spec.layers} layers of {spec.dim})" if spec.layers > 1 else ""
    pooled = f", and a vector of {spec.pooled}" if spec.pooled else ""
    shape = f"{spec.tokens} tokens of {spec.layers * spec.dim} channels{layers}{pooled}"
    return f"{find('text_encoders', recipe.text.encoder['kind']).__name__}, {shape} for each distinct caption"


def look_at_images(recipe: Recipe) -> tuple[dict[str, SplitFacts], str]:
    """What is known of both splits, and a line of it; of images that are not on this machine nothing, and the reason.

    Raises ValueError where they are here, and wrong.
    """
    try:
        facts = {split: split_facts(recipe.data, split, recipe.text is not None) for split in SPLITS}
    except MissingImages as error:
        return {}, f"not on this machine ({error}); counting with {CLASSES:,} classes"
    train, held_out = facts["train"], facts["held_out"]
    classes = f"{len(train.class_names)} classes" if train.class_names else "no classes"
    each = f" of {min(train.class_counts):,} to {max(train.class_counts):,} images" if train.class_counts else ""
    return facts, f"{train.images:,} of {recipe.data.shape_text}, {classes}{each}; {held_out.images:,} held out"


def passes(recipe: Recipe, images: int) -> list[str]:
    """Of every training its steps, and how often it sees every image, where their number is known."""
    texts = []
    for place, loop, _ in trainings(recipe):
        seen = f", {loop.steps * loop.batch / images:.3g} passes" if images else ""
        texts.append(f"{place.removesuffix('.loop')} {loop.steps:,} steps of {loop.batch}{seen}")
    return texts


def encoding(recipe: Recipe, images: int) -> list[str]:
    """What it costs that codes are not stored; nothing where they are."""
    if recipe.generator is None or recipe.latents.store or not recipe.generator.loop.steps:
        return []
    loop = recipe.generator.loop
    times = f", {loop.steps * loop.batch / images:.3g} times for each image" if images else ""
    return [f"codes are not stored: the tokenizer encodes the {loop.batch} images of every step{times}"]


def workers(recipe: Recipe, processes: int) -> str:
    """Who reads images."""
    count = recipe.data.workers
    if not count:
        return "none: the training process reads images itself; set data.workers where it waits for them"
    return f"{count} read images" + (f" for each of {processes} processes" if processes > 1 else "")


def memory(needs: TrainingNeeds, processes: int, limit: float) -> str:
    """What a training needs of each GPU, and the accumulation with which it fits."""
    if not needs.players:
        return f"{needs.place}: {needs.note}"
    images, each = needs.images(processes), f"{processes} processes" if processes > 1 else "one process"
    fixed = (
        f"{in_bytes(needs.memory(processes) - (needs.step.of(images) if needs.step else 0))} of weights and optimiser"
    )
    if needs.step is None:
        return f"{needs.place}: {fixed} per GPU; {needs.note}"
    note = f", {needs.note}" if needs.note else ""
    text = (
        f"{needs.place}: {in_bytes(needs.memory(processes))} per GPU by {each} of {images} images"
        f" ({fixed}; activations {in_bytes(needs.step.fixed)} + {in_bytes(needs.step.per_image)} per image{note})"
    )
    if needs.memory(processes) <= limit:
        return text
    fitting, given = needs.fitting(processes, limit), in_bytes(limit)
    if fitting is None:
        return f"{text}; it does not fit {given} with any loop.accumulate"
    return f"{text}; it does not fit {given}: set {needs.place}.{loop_of(needs.place)}accumulate={fitting}"


def loop_of(place: str) -> str:
    return "phase.loop." if place in ("joint", "posttrain") else "loop."


def times(recipe: Recipe, checked: CheckedRecipe, classes: int, needs: list[TrainingNeeds]) -> str:
    """The time of each training's steps on this machine, by one process, where a step was measured."""
    device, texts = current_device(), []
    for training, one in zip(planned(recipe, checked, classes), needs):
        found = time_step(training, one, device)
        if found is None:
            texts.append(f"{one.place} not measured")
            continue
        seconds = found.seconds * one.loop.accumulate
        hours = seconds * one.loop.steps / 3600
        texts.append(f"{one.place} {seconds:.3g} s a step, {hours:.2g} h in all on {found.device}")
    return "; ".join(texts) + " (without reading images)"


def codebook(spec: LatentSpec) -> str:
    return f", {spec.codebooks} x {spec.codes:,} codes" if spec.vocab else ""


def million(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def sizes(tokenizer: Tokenizer) -> str:
    """The number of its parameters, and of those that are frozen."""
    fixed = sum(parameter.numel() for parameter in frozen_of(tokenizer))
    text = f"{million(count_parameters(tokenizer))} parameters"
    return f"{text}, {million(fixed)} of them frozen" if fixed else text


def frozen_of(tokenizer: Tokenizer) -> Iterator[nn.Parameter]:
    return iter(tokenizer.frozen_parameters())


def sampling(recipe: Recipe, checked: CheckedRecipe) -> Rows:
    """How the generator is sampled, where there is one."""
    if checked.generator is None:
        return
    part, steps = recipe.sample, checked.generator.objective.steps_for(checked.spec, recipe.sample.steps)
    weak = f" away from {part.weak}" if part.weak else ""
    yield "sampling", f"{part.images} images, {steps} evaluations each, at guidance {part.guidance.scale:g}{weak}"
