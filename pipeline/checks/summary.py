"""What `check` prints of a recipe: parameters, shapes, memory and disk, known before training."""

import math

import torch
from torch import nn

from pipeline.checks.accumulation import dependent_on_accumulation
from pipeline.checks.posttraining import check_held_out
from pipeline.checks.recipe import check_recipe
from pipeline.code import LatentSpec
from pipeline.components import Node
from pipeline.frozen.networks import declared_input
from pipeline.networks.base import Network
from pipeline.objectives.base import Objective
from pipeline.recipes.building import build_network, build_tokenizer, count_parameters, hidden_layout
from pipeline.recipes.schema import Recipe
from pipeline.tokenizers.base import Tokenizer

BYTES_TRAINED = 20  # per trained fp32 parameter: weight, gradient, two moments of AdamW, average
BYTES_FROZEN = 4
BYTES_SAVED = 16  # the same in a checkpoint, without the gradient


def print_check(recipe: Recipe) -> None:
    """Print parameters, shapes, memory and disk; builds on the meta device and writes nothing."""
    checked = check_recipe(recipe)
    images, classes, note = data_summary(recipe)
    if images and recipe.posttrain is not None:
        check_held_out(recipe.posttrain, images)
    conditional = recipe.generator.condition == "class"
    with torch.device("meta"):
        network = build_network(recipe, checked.spec, (classes or 1000) if conditional else 0, checked.objective)
        tokenizer = None if checked.tokenizer.frozen else build_tokenizer(recipe)
    grid = "x".join(map(str, checked.spec.grid))
    rows = [
        ("recipe", recipe.name),
        ("images", note),
        ("tokenizer", f"{checked.tokenizer.__name__}, {'frozen' if tokenizer is None else sizes(tokenizer)}"),
        ("latents", f"{checked.spec.tokens} tokens ({grid}) of {checked.spec.dim} channels" + codebook(checked.spec)),
        ("generator", f"{checked.network.__name__}, {million(count_parameters(network))} parameters"),
        ("objective", type(checked.objective).__name__),
        *([] if recipe.joint is None else [("joint", joint_training(recipe, tokenizer, network))]),
        ("memory", memory(tokenizer, network)),
        ("disk", disk(recipe, checked.spec, checked.objective, images, network)),
        (
            "sampling",
            f"{recipe.sample.images} images, {checked.objective.steps_for(checked.spec, recipe.sample.steps)}"
            f" evaluations each, at guidance {recipe.sample.guidance.scale:g}"
            + (f" away from {recipe.sample.weak}" if recipe.sample.weak else ""),
        ),
        *[("batches", str(training)) for training in dependent_on_accumulation(recipe)],
        ("output", f"runs/{recipe.name}/"),
    ]
    for title, text in rows:
        print(f"{title:<12}{text}")


def data_summary(recipe: Recipe) -> tuple[int, int, str]:
    """Training images and classes; 0 and 0 with the reason when the data is not on this machine."""
    from pipeline.images.reading import Images

    try:
        images = Images(recipe.data, "train")
    except ValueError as error:
        return 0, 0, f"not on this machine ({error}); counting with 1,000 classes"
    return len(images), images.num_classes, f"{len(images):,} of {recipe.data.size} px, {images.num_classes} classes"


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
    text = [f"generator {in_bytes(count_parameters(network) * BYTES_TRAINED)}"]
    if tokenizer is not None:
        fixed = sum(parameter.numel() for parameter in tokenizer.frozen_parameters())
        needed = fixed * BYTES_FROZEN + (count_parameters(tokenizer) - fixed) * BYTES_TRAINED
        text.insert(0, f"tokenizer {in_bytes(needed)}")
    return f"{', '.join(text)} to train in fp32, without activations"


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
    return f"{latents}{note}, generator checkpoints {saved} while it trains"


def stored_features(recipe: Recipe, node: Node, network: Network) -> int | None:
    """Numbers that a teacher's features of one view hold; None where its width is not known on this machine."""
    declared = declared_input(recipe, "losses", node)
    width, block = declared.width(), declared.component.attachment_of(declared.arguments).block
    grid, _ = hidden_layout(network, block)
    return None if width is None else math.prod(grid) * width


def in_bytes(count: float) -> str:
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
