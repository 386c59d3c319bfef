"""What samples are measured against: a split of the recipe's images, a folder, an archive, or stored statistics."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.checks.evaluation import check_archive
from pipeline.features.moments import Gaussian, Moments
from pipeline.features.networks import FeatureExtractors
from pipeline.features.passes import ImageRows, PerImage, evenly_spaced, process_batches
from pipeline.features.statistics_file import SPLITS, array_names, file_title, read_statistics
from pipeline.files.content import hash_files
from pipeline.files.paths import given_path
from pipeline.images.ahead import read_ahead
from pipeline.images.files import open_archive
from pipeline.images.reading import Images
from pipeline.images.stored_pixels import from_pixels
from pipeline.measuring.image_statistics import gather_statistics
from pipeline.recipes.data import Data
from pipeline.recipes.schema import Recipe


@dataclass
class Reference:
    """Real images, as far as they are known."""

    title: str
    moments: dict[str, Gaussian | Moments]
    rows: PerImage  # of some of them; empty where the images are not there, only their statistics
    stored: dict[str, str] = field(default_factory=dict)  # titles of the moments that a file holds, by name


@dataclass
class ImageSource:
    """Images by number, wherever they are stored."""

    title: str
    count: int
    read: Callable[[Tensor], Tensor]  # numbers [B] to images [B, C, H, W] in [-1, 1]
    workers: int = 0  # processes that read them


def load_reference(recipe: Recipe, extractors: FeatureExtractors, accelerator: Accelerator) -> Reference:
    """The reference that a recipe names. Every process takes part.

    Statistics of a file are used as they are, all others are computed from all images; rows are those of
    evaluate.neighbour_images of them. Where there are images, statistics of a file are not used for a resize that is
    not the published one.
    """
    given, source = recipe.evaluate.reference, _source(recipe)
    path, stored, titles = given_path(given), {}, {}
    if given not in SPLITS and path.is_file() and (source is None or recipe.evaluate.resize == "tensorflow1"):
        stored = read_statistics(path, extractors.features)
        titles = dict.fromkeys(stored, file_title(path))
    if source is None:
        return Reference(file_title(path), stored, {}, titles)
    chosen = evenly_spaced(
        None, source.count, min(source.count, recipe.evaluate.images, recipe.evaluate.neighbour_images)
    )
    missing = [name for name in extractors.statistics if name not in stored]
    measured = torch.arange(source.count) if missing else chosen  # all where moments are still to be computed
    kept = chosen if missing else torch.arange(len(chosen))

    batches = [measured[indices] for indices in process_batches(accelerator, len(measured))]
    images = read_ahead(source.read, batches, source.workers)

    def measure(indices: Tensor) -> ImageRows:
        rows = extractors.rows(next(images))
        return ImageRows(wide=rows.wide, summed={name: rows.summed[name] for name in missing})

    statistics = gather_statistics(accelerator, len(measured), measure, kept)
    return Reference(source.title, stored | statistics.moments, statistics.wide, titles)


def fingerprint_reference(recipe: Recipe) -> str | None:
    """A hash of what a given reference holds; None for a split, whose images the recipe has anyway."""
    given = recipe.evaluate.reference
    if given in SPLITS:
        return None
    path = given_path(given)
    if path.is_dir():
        return images_of_folder(path, recipe.data).fingerprint()
    return hash_files(path.parent, [path.name])


def images_of_folder(path: Path, data: Data) -> Images:
    """All images of a folder, in the size, the channels and the depth of `data`."""
    source = {"kind": "image_folder", "path": str(path), "held_out": 0.0}
    return Images(Data(source, data.size, data.channels, data.depth), "train")


def _source(recipe: Recipe) -> ImageSource | None:
    """The images of the reference; None where it holds statistics alone."""
    given = recipe.evaluate.reference
    path = given_path(given)
    if given not in SPLITS and not path.is_dir():
        if "arr_0" not in array_names(path):
            return None
        check_archive(path, recipe.data)
        pixels = open_archive(path)
        return ImageSource(
            f"{len(pixels)} images of {path.name}", len(pixels), lambda i: from_pixels(pixels[i.numpy()])
        )
    images = Images(recipe.data, given) if given in SPLITS else images_of_folder(path, recipe.data)
    title = {"train": "the training split", "held_out": "the held-out split"}.get(given, path.name)
    read = partial(pixels_of, images)
    return ImageSource(f"{len(images)} images of {title}", len(images), read, recipe.data.workers)


def pixels_of(images: Images, rows: Tensor) -> Tensor:
    """Rows [B] of a collection as images [B, C, H, W] in [-1, 1]."""
    return images.plain(rows).images
