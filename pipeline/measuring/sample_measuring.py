"""Samples beside real images: what is seen of both, and the numbers that come of it, for a report and for a sweep."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.images.eight_bits import from_bytes
from pipeline.images.files import open_archive
from pipeline.images.reading import ImageBatch, Images
from pipeline.measuring.evaluation import (
    Number,
    Rows,
    accuracy_numbers,
    copy_numbers,
    even,
    sample_numbers,
    score_numbers,
    spread,
    versions,
)
from pipeline.measuring.eyes import Eyes
from pipeline.measuring.image_statistics import ImageStatistics, gather_statistics
from pipeline.measuring.reference import Reference, load_reference, reference_numbers
from pipeline.recipes.schema import Recipe

SURROUNDINGS = ("command", "finished", "device", "processes", "python", "versions", "commit", "images", "seed")


@dataclass
class Real:
    """What samples are measured against, seen once however many sets of samples there are."""

    train: Rows
    held_out: Rows
    reference: Reference | None  # where the recipe states one; else samples are measured against `train`
    sizes: dict[str, int]  # images of the splits


def see_real(
    recipe: Recipe,
    train: Images,
    held_out: Images,
    eyes: Eyes,
    accelerator: Accelerator,
    more: Callable[[ImageBatch], Rows] | None = None,
) -> Real:
    """Look at real images; `more` gives further rows of held-out ones. Every process takes part."""
    splits = [see_split(recipe, images, eyes, accelerator, also) for images, also in ((train, None), (held_out, more))]
    stated = recipe.evaluate.reference != "train"
    reference = load_reference(recipe, eyes.features, eyes.see_features, accelerator) if stated else None
    return Real(*splits, reference, {"train": len(train), "held_out": len(held_out)})


def see_split(
    recipe: Recipe,
    images: Images,
    eyes: Eyes,
    accelerator: Accelerator,
    more: Callable[[ImageBatch], Rows] | None = None,
) -> Rows:
    """What is seen of at most evaluate.images images of a split, evenly through it."""
    chosen = even(None, len(images), min(len(images), recipe.evaluate.images))

    def look(places: Tensor) -> Rows:
        batch = images.plain(chosen[places])
        labels = {"labels": batch.condition.labels} if batch.condition else {}
        return eyes.see(batch.images) | labels | (more(batch) if more else {})

    return spread(accelerator, len(chosen), look)


def read_samples(folder: Path) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Pixels uint8 [N, H, W, 3], labels [N] (None where images were not asked for by class), and how they were made."""
    pixels = open_archive(folder / "samples.npz")
    with np.load(folder / "samples.npz") as archive:
        labels = archive.get("arr_1")
    made = json.loads((folder / "samples.json").read_text())
    return pixels, None if labels is None or (labels < 0).any() else labels, made


def see_samples(
    recipe: Recipe, eyes: Eyes, pixels: np.ndarray, labels: np.ndarray | None, accelerator: Accelerator
) -> ImageStatistics:
    """Rows of at most evaluate.images samples, evenly through the classes; what a stated reference needs of all."""
    given = None if labels is None else torch.from_numpy(labels)
    chosen = even(given, len(pixels), min(len(pixels), recipe.evaluate.images))
    stated = recipe.evaluate.reference != "train"
    names = [name for feature in eyes.features for name in feature.statistics()] if stated else []
    see = lambda i: eyes.see(from_bytes(pixels[i.numpy()]))  # noqa: E731
    logits = eyes.logits and eyes.logits.logits
    samples = gather_statistics(accelerator, len(pixels), see, chosen, names, logits)
    if given is not None:
        samples.rows["labels"] = given[chosen]
    return samples


def numbers_of_samples(
    recipe: Recipe, eyes: Eyes, samples: ImageStatistics, real: Real, made: dict[str, Any]
) -> Iterator[tuple[str, Number]]:
    """Every number of a set of samples, by key; `made` says how they were."""
    protocol = {"sampling": {key: value for key, value in made.items() if key not in SURROUNDINGS}}
    protocol |= common_protocol(real.sizes)
    count = min(len(samples.rows["guess"]), len(real.held_out["guess"]))
    few, floor = (
        pick(rows, even(rows.get("labels"), len(rows["guess"]), count)) for rows in (samples.rows, real.held_out)
    )
    yield from accuracy_numbers(samples.rows, real.held_out, eyes.described["judge"], protocol)
    part = recipe.evaluate
    if real.reference is None:
        yield from sample_numbers(few, floor, real.train, eyes.features, part.neighbours, protocol)
    else:
        beside = None if part.reference == "held_out" else floor
        yield from reference_numbers(samples, few, beside, real.reference, eyes.features, part.neighbours, protocol)
    if (feature := eyes.logits) is not None:
        logits = real.held_out.get(feature.logits)
        yield from score_numbers(samples.score.value(), samples.count, logits, feature, protocol)
    near = {name: feature.describe() for name, feature in eyes.near.items()}
    yield from copy_numbers(samples.rows, real.held_out, real.train, near, protocol)


def common_protocol(sizes: dict[str, int]) -> dict[str, Any]:
    return {"precision": "networks float32, statistics float64", "versions": versions(), "splits": sizes}


def pick(rows: Rows, chosen: Tensor) -> Rows:
    return {name: values[chosen] for name, values in rows.items()}
