"""What `check` prints of a recipe: parameters, shapes, memory and disk, known before training."""

import math

from torch import nn

from pipeline.checks.accumulation import dependent_on_accumulation, trainings
from pipeline.checks.line import CLASSES, check_line
from pipeline.checks.machine import disk_here, in_bytes, memory_here, memory_needed
from pipeline.checks.recipe import check_recipe
from pipeline.checks.weights import check_weights
from pipeline.code import LatentSpec
from pipeline.components import Node
from pipeline.datasets.base import MissingImages
from pipeline.frozen.networks import declared_input
from pipeline.images.facts import SPLITS, SplitFacts, split_facts
from pipeline.networks.base import Network
from pipeline.objectives.base import Objective
from pipeline.recipes.building import count_parameters, hidden_layout
from pipeline.recipes.schema import Recipe
from pipeline.runs.machine import RUNS
from pipeline.tokenizers.base import Tokenizer

BYTES_SAVED = 16  # per trained fp32 parameter in a checkpoint: weight, two moments of AdamW, average


def print_check(recipe: Recipe) -> None:
    """Print parameters, shapes, weights, memory and disk; builds on the meta device and writes nothing.

    Raises ValueError with one line for all that is wrong with the recipe or its images; images that are not on this
    machine are said to be missing. Weights that are missing are such a line too, after all has been printed.
    """
    checked = check_recipe(recipe)
    facts, note = look_at_images(recipe)
    line = check_line(recipe, checked, facts)
    tokenizer, network = line.tokenizer, line.network
    images = facts["train"].images if facts else 0
    grid = "x".join(map(str, checked.spec.grid))
    rows = [
        ("recipe", recipe.name),
        ("images", note),
        ("tokenizer", f"{checked.tokenizer.__name__}, {'frozen' if tokenizer is None else sizes(tokenizer)}"),
        ("latents", f"{checked.spec.tokens} tokens ({grid}) of {checked.spec.dim} channels" + codebook(checked.spec)),
        ("generator", f"{checked.network.__name__}, {million(count_parameters(network))} parameters"),
        ("objective", type(checked.objective).__name__),
        *([] if recipe.joint is None else [("joint", joint_training(recipe, tokenizer, network))]),
        *[("weights", text) for text in line.weights],
        ("training", "; ".join(passes(recipe, images))),
        ("memory", memory(tokenizer, network)),
        ("disk", disk(recipe, checked.spec, checked.objective, images, network)),
        (
            "sampling",
            f"{recipe.sample.images} images, {checked.objective.steps_for(checked.spec, recipe.sample.steps)}"
            f" evaluations each, at guidance {recipe.sample.guidance.scale:g}"
            + (f" away from {recipe.sample.weak}" if recipe.sample.weak else ""),
        ),
        *[("batches", str(training)) for training in dependent_on_accumulation(recipe)],
        *[("left out", text) for text in line.left_out],
        *[("warning", text) for text in line.warnings],
        ("output", f"runs/{recipe.name}/"),
    ]
    for title, text in rows:
        print(f"{title:<12}{text}")
    check_weights(recipe)


def look_at_images(recipe: Recipe) -> tuple[dict[str, SplitFacts], str]:
    """What is known of both splits, and a line of it; of images that are not on this machine nothing, and the reason.

    Raises ValueError where they are here, and wrong.
    """
    try:
        facts = {split: split_facts(recipe.data, split) for split in SPLITS}
    except MissingImages as error:
        return {}, f"not on this machine ({error}); counting with {CLASSES:,} classes"
    train, held_out = facts["train"], facts["held_out"]
    classes = f"{len(train.class_names)} classes" if train.class_names else "no classes"
    each = f" of {min(train.class_counts):,} to {max(train.class_counts):,} images" if train.class_counts else ""
    return facts, f"{train.images:,} of {recipe.data.size} px, {classes}{each}; {held_out.images:,} held out"


def passes(recipe: Recipe, images: int) -> list[str]:
    """Of every training its steps, and how often it sees every image, where their number is known."""
    texts = []
    for place, loop, _ in trainings(recipe):
        seen = f", {loop.steps * loop.batch / images:.3g} passes" if images else ""
        texts.append(f"{place.removesuffix('.loop')} {loop.steps:,} steps of {loop.batch}{seen}")
    return texts


def codebook(spec: LatentSpec) -> str:
    return f", {spec.codebooks} x {spec.vocab:,} codes" if spec.vocab else ""


def million(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def sizes(tokenizer: Tokenizer) -> str:
    """The number of its parameters, and of those that are frozen."""
    fixed = sum(parameter.numel() for parameter in tokenizer.frozen_parameters())
    text = f"{million(count_parameters(tokenizer))} parameters"
    return f"{text}, {million(fixed)} of them frozen" if fixed else text


def memory(tokenizer: Tokenizer | None, network: nn.Module) -> str:
    text = [f"{name} {in_bytes(needed)}" for name, needed in memory_needed(tokenizer, network).items()]
    return f"{', '.join(text)} to train in fp32, without activations; this machine has {in_bytes(memory_here())}"


def joint_training(recipe: Recipe, tokenizer: nn.Module | None, network: nn.Module) -> str:
    """Steps, batch and weights of the joint training, and the disk that its checkpoints need."""
    loop, terms = recipe.joint.phase.loop, recipe.joint.alignment.items()
    saved = (
        sum(count_parameters(model) for model in (tokenizer, network) if model is not None) * BYTES_SAVED * loop.keep
    )
    weights = ", ".join(f"{weight:g} {term}" for term, weight in terms)
    return (
        f"{loop.steps:,} steps of {loop.batch} images, the tokenizer by {weights};"
        f" checkpoints {in_bytes(saved)} while it runs"
    )


def disk(recipe: Recipe, spec: LatentSpec, objective: Objective, images: int, network: Network) -> str:
    width = 1 if recipe.latents.posterior != "moments" else 2
    scalar = 4 if recipe.latents.precision == "fp32" else 2
    entry = 2 if spec.vocab <= 2**16 else 4  # an id as pipeline.latents.encoding stores it
    code = spec.tokens * (spec.codebooks * entry if spec.vocab else spec.dim * width * scalar)
    code += objective.class_token * scalar
    note = ""
    if recipe.latents.features:
        features = [stored_features(recipe, node, network) for node in recipe.generator.losses.values()]
        code += sum(count or 0 for count in features) * scalar
        note = " without features, for the teacher's width is not known here" if None in features else " with features"
    code *= recipe.latents.views
    saved = in_bytes(recipe.generator.loop.keep * count_parameters(network) * BYTES_SAVED)
    latents = f"latents {in_bytes(images * code)}" if images else f"latents {in_bytes(code)} per image"
    free = in_bytes(disk_here(RUNS))
    return f"{latents}{note}, generator checkpoints {saved} while it trains; {free} are free"


def stored_features(recipe: Recipe, node: Node, network: Network) -> int | None:
    """Numbers that a teacher's features of one view hold; None where its width is not known on this machine."""
    declared = declared_input(recipe, "losses", node)
    width, block = declared.width(), declared.component.attachment_of(declared.arguments).block
    grid, _ = hidden_layout(network, block)
    return None if width is None else math.prod(grid) * width
