"""What can be said of recipes without training: the list of them, and the check of one."""

import math
import re
from pathlib import Path

import torch

from pipeline.recipe import CONFIGS, Recipe, names

BYTES_TRAINED = 20  # a trained fp32 parameter: itself, gradient, two moments of AdamW, average
BYTES_SAVED = 16  # the same in a checkpoint, without the gradient


def print_recipes() -> None:
    """Each recipe with the first sentence of its comment block."""
    for name in names():
        print(f"{name:<28}{headline(CONFIGS / f'{name}.yaml')}")


def headline(path: Path) -> str:
    comment = " ".join(line.lstrip("# ").rstrip() for line in path.read_text().splitlines() if line.startswith("#"))
    return re.split(r"(?<=[.])\s", comment, maxsplit=1)[0]


def print_check(recipe: Recipe) -> None:
    """Everything that can be known before training; builds on the meta device and writes nothing."""
    from pipeline.line import build_network, build_tokenizer, check_line, parameters

    line = check_line(recipe)
    images, classes, note = data_summary(recipe)
    conditional = recipe.generator.condition == "class"
    with torch.device("meta"):
        network = build_network(recipe, line.spec, (classes or 1000) if conditional else 0, line.objective)
        tokenizer = None if line.tokenizer.frozen else build_tokenizer(recipe)
    grid = "x".join(map(str, line.spec.grid))
    rows = [
        ("recipe", recipe.name),
        ("images", note),
        ("tokenizer", f"{line.tokenizer.__name__}, {million(tokenizer and parameters(tokenizer))}"),
        ("latents", f"{line.spec.tokens} tokens ({grid}) of {line.spec.dim} channels" + codebook(line.spec)),
        ("generator", f"{line.network.__name__}, {million(parameters(network))}"),
        ("objective", type(line.objective).__name__),
        ("memory", memory(tokenizer, network)),
        ("disk", disk(recipe, line.spec, images, parameters(network))),
        (
            "sampling",
            f"{recipe.sample.images} images, {recipe.sample.steps} evaluations each, at guidance "
            f"{recipe.sample.guidance:g}",
        ),
        ("output", f"runs/{recipe.name}/"),
    ]
    for title, text in rows:
        print(f"{title:<12}{text}")


def data_summary(recipe: Recipe) -> tuple[int, int, str]:
    """Training images and classes; 0 and 0 with the reason when the data is not on this machine."""
    from pipeline.images import Images

    try:
        images = Images(recipe.data, "train")
    except ValueError as error:
        return 0, 0, f"not on this machine ({error}); counting with 1,000 classes"
    return len(images), images.num_classes, f"{len(images):,} of {recipe.data.size} px, {images.num_classes} classes"


def codebook(spec) -> str:
    return f", {spec.codebooks} x {spec.vocab:,} codes" if spec.vocab else ""


def million(count: int | None) -> str:
    return "frozen" if count is None else f"{count / 1e6:.2f} M parameters"


def memory(tokenizer, network) -> str:
    from pipeline.line import parameters

    parts = {"tokenizer": tokenizer, "generator": network}
    text = [f"{name} {size(parameters(m) * BYTES_TRAINED)}" for name, m in parts.items() if m is not None]
    return f"{', '.join(text)} to train in fp32, without activations"


def disk(recipe: Recipe, spec, images: int, weights: int) -> str:
    width = 1 if recipe.latents.posterior != "moments" else 2
    scalar = 4 if recipe.latents.precision == "fp32" else 2
    code = spec.tokens * (spec.codebooks * scalar if spec.vocab else spec.dim * width * scalar)
    code *= 2 if recipe.latents.flip else 1
    saved = size(recipe.generator.loop.keep * weights * BYTES_SAVED)
    latents = f"latents {size(images * code)}" if images else f"latents {size(code)} an image"
    return f"{latents}, generator checkpoints {saved} while it trains"


def size(count: float) -> str:
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
