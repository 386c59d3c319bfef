"""What samples are measured against: a split of the recipe's images, a folder, an archive, or stored statistics."""

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from pipeline.images.eight_bits import from_bytes
from pipeline.images.files import open_archive
from pipeline.images.reading import Images
from pipeline.measuring.evaluation import Number, Rows, even, frechet_numbers, row_numbers, versions
from pipeline.measuring.feature_choice import build_features
from pipeline.measuring.image_statistics import ImageStatistics, gather_statistics
from pipeline.metrics.base import Features
from pipeline.metrics.frechet import Gaussian, Moments
from pipeline.recipes.files import is_recipe, merge, parse
from pipeline.recipes.schema import Data, Recipe, load

SPLITS = ("train", "held_out")
NAMES = {"inception": ("mu", "sigma"), "inception_spatial": ("mu_s", "sigma_s")}  # as ADM and pytorch-fid write them
PROTOCOL = "protocol"  # a text in the archives that `write_statistics` makes
AGREE = ("weights_sha256", "width", "resize")  # what features have in common that are measured against each other


@dataclass
class Reference:
    """Real images, as far as they are known."""

    title: str
    moments: dict[str, Gaussian | Moments]
    rows: Rows  # of some of them; empty where there are no images but their statistics
    stored: dict[str, str] = field(default_factory=dict)  # titles of the moments that a file holds, by name


@dataclass
class Source:
    """Images by number, wherever they lie."""

    title: str
    count: int
    read: Callable[[Tensor], Tensor]  # numbers [B] to images [B, 3, H, W] in [-1, 1]


@dataclass
class FolderSettings:
    """What `run.py reference FOLDER` takes."""

    size: int  # pixels a side that every image is resized and cropped to
    features: tuple[str, ...] = ("inception",)
    resize: Literal["tensorflow1", "antialias", "clean"] = "tensorflow1"
    weights: dict[str, str] = field(default_factory=dict)


def check_reference(given: str, kinds: tuple[str, ...]) -> None:
    """ValueError where `evaluate.reference` is not there, or has neither images nor statistics of these features."""
    path = Path(given).expanduser()
    if given in SPLITS or path.is_dir():
        return
    if not path.is_file():
        raise ValueError(
            f"evaluate.reference: there is no file or folder {given!r}; state train, held_out, an .npz or a folder"
        )
    held = _entries(path)
    lacking = [kind for kind in kinds if not set(_names(kind)) <= held]
    if "arr_0" not in held and lacking:
        raise ValueError(
            f"evaluate.reference: {given} holds no images, and no statistics of {', '.join(lacking)}; take these out of"
            " evaluate.features, or make statistics of them by: python run.py reference RECIPE OUT.npz"
        )


def load_reference(
    recipe: Recipe, features: list[Features], see: Callable[[Tensor], Rows], accelerator: Accelerator
) -> Reference:
    """The reference that a recipe states; `see` gives rows of images [B, 3, H, W]. Every process takes part.

    Statistics of a file are taken as they are, all others are made of all images; rows are of evaluate.images of them.
    Where there are images, those of a file are left for resizes that are not the published one.
    """
    given, source = recipe.evaluate.reference, _source(recipe)
    path, stored, titles = Path(given).expanduser(), {}, {}
    if given not in SPLITS and path.is_file() and (source is None or recipe.evaluate.resize == "tensorflow1"):
        stored = read_statistics(path, features)
        titles = dict.fromkeys(stored, _title(path))
    if source is None:
        return Reference(_title(path), stored, {}, titles)
    chosen = even(None, source.count, min(source.count, recipe.evaluate.images))
    wanted = [name for feature in features for name in feature.statistics() if name not in stored]
    looked = torch.arange(source.count) if wanted else chosen  # all where moments are still to be made
    kept = chosen if wanted else torch.arange(len(chosen))
    found = gather_statistics(accelerator, len(looked), lambda i: see(source.read(looked[i])), kept, wanted)
    return Reference(source.title, stored | found.moments, found.rows, titles)


def reference_numbers(
    samples: ImageStatistics,
    few: Rows,
    held_out: Rows | None,
    reference: Reference,
    features: list[Features],
    neighbours: int,
    protocol: dict[str, Any],
) -> Iterator[tuple[str, Number]]:
    """Distances of all samples to the whole reference, and of their rows `few` to its rows, where it has any.

    `held_out` has as many rows as `few`; None where they are the reference. Distances of moments depend on how many
    images there are, so that they stand alone where the held-out images are fewer than the samples.
    """
    for feature in features:
        of = reference.stored.get(feature.name, reference.title)
        whole = {"images": f"{samples.count} samples", "references": of} | protocol
        yield from frechet_numbers(feature, samples.moments, reference.moments, None, whole, feature is features[0])
    if not reference.rows:
        return
    counts = {name: len(rows[features[0].name]) for name, rows in (("few", few), ("all", reference.rows))}
    some = {"images": f"{counts['few']} samples", "references": f"{counts['all']} of {reference.title}"} | protocol
    if held_out is not None:
        some = {"held_out": f"{counts['few']} real held-out images"} | some
    for feature in features:
        name = feature.name
        yield from row_numbers(feature, few[name], held_out and held_out[name], reference.rows[name], neighbours, some)


def read_statistics(path: Path, features: list[Features]) -> dict[str, Gaussian | Moments]:
    """The mean and covariance that an archive holds of each of the features; those that it has none of are left out.

    Raises ValueError where they are of other features than these: of another width, or, where the archive says of
    which, of other weights or another resize.
    """
    held, found = _entries(path), {}
    with np.load(path) as archive:
        said = json.loads(str(archive[PROTOCOL]))["features"] if PROTOCOL in held else {}
        for name, described in ((n, d) for feature in features for n, d in feature.statistics().items()):
            mean, covariance = _names(name)
            if not {mean, covariance} <= held:
                continue
            found[name] = Gaussian(*(torch.from_numpy(archive[key].astype(np.float64)) for key in (mean, covariance)))
            theirs = said.get(name, {"width": len(found[name].mean)})
            if unlike := [key for key in AGREE if key in theirs and theirs[key] != described[key]]:
                raise ValueError(
                    f"{path}: its statistics of {name} have {unlike[0]} {theirs[unlike[0]]!r}, the features here"
                    f" {described[unlike[0]]!r}; make them again by: python run.py reference"
                )
    return found


def write_statistics(path: Path, moments: dict[str, Moments], protocol: dict[str, Any]) -> None:
    """Mean and covariance by features, Inception's under the names that ADM and pytorch-fid read, and the protocol."""
    arrays = {}
    for name, of in moments.items():
        arrays |= {key: value.numpy() for key, value in zip(_names(name), (of.mean, of.covariance))}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    with draft.open("wb") as file:
        np.savez(file, **arrays, **{PROTOCOL: np.array(json.dumps(protocol))})
    os.replace(draft, path)


def reference_from_command_line(arguments: list[str]) -> None:
    """`run.py reference DATA OUT.npz key=value ...`: statistics of all images of a folder, or of a recipe's split."""
    from pipeline.runs.machine import accelerate

    if len(arguments) < 2 or not arguments[1].endswith(".npz"):
        raise ValueError("reference needs DATA (a recipe or a folder of images) and OUT.npz; a folder also size=256")
    given, out, settings = arguments[0], Path(arguments[1]).expanduser(), arguments[2:]
    accelerator = accelerate("fp32")
    images, kinds, weights, resize = _of_recipe(given, settings) if is_recipe(given) else _of_folder(given, settings)
    features = build_features(kinds, weights, resize, accelerator.device)
    moments = measure_images(images, features, accelerator)
    if accelerator.is_main_process:
        described = {name: of for feature in features for name, of in feature.statistics().items()}
        about = {"images": f"{len(images)} of {given}, {images.split}", "fingerprint": images.fingerprint()}
        about |= {"size": images.data.size, "prepared": images.data.resize, "features": described}
        about |= {"precision": "networks float32, statistics float64", "versions": versions()}
        write_statistics(out, moments, about)
        print(f"{out}: statistics of {len(images)} images, {', '.join(moments)}; state evaluate.reference={out}")


def measure_images(images: Images, features: list[Features], accelerator: Accelerator) -> dict[str, Moments]:
    """The moments of all images of a split, by name, in memory that does not grow with them."""
    names = [name for feature in features for name in feature.statistics()]
    with tqdm(total=len(images), desc="reference", unit="image", disable=not accelerator.is_main_process) as bar:

        def see(indices: Tensor) -> Rows:
            pixels = images.plain(indices).images.to(accelerator.device)
            bar.update(min(len(indices) * accelerator.num_processes, bar.total - bar.n))
            return {name: rows for feature in features for name, rows in feature.see(pixels).items()}

        return gather_statistics(accelerator, len(images), see, torch.arange(0), names).moments


def _of_recipe(given: str, settings: list[str]) -> tuple[Images, tuple[str, ...], dict[str, str], str]:
    """The split that `evaluate.reference` names, and the features that are the same in every run."""
    recipe = load(given, settings)
    kinds = tuple(kind for kind in recipe.evaluate.features if kind != "classifier")
    if not kinds:
        raise ValueError("evaluate.features names the classifier alone, which every run trains for itself; add others")
    split = recipe.evaluate.reference if recipe.evaluate.reference in SPLITS else "train"
    return Images(recipe.data, split), kinds, recipe.weights, recipe.evaluate.resize


def _of_folder(given: str, settings: list[str]) -> tuple[Images, tuple[str, ...], dict[str, str], str]:
    from pipeline.components import structure

    values: dict[str, Any] = {}
    for setting in settings:
        values = merge(values, parse(setting))
    asked = structure(FolderSettings, values)
    if "classifier" in asked.features:
        raise ValueError("features: the classifier is trained by every run for itself; name others")
    return _folder(Path(given), asked.size), asked.features, asked.weights, asked.resize


def _folder(path: Path, size: int) -> Images:
    source = {"kind": "image_folder", "path": str(path), "held_out": 0.0}
    return Images(Data(source=source, size=size), "train")


def _source(recipe: Recipe) -> Source | None:
    """The images of the reference; None where it holds statistics alone."""
    given = recipe.evaluate.reference
    path = Path(given).expanduser()
    if given not in SPLITS and not path.is_dir():
        if "arr_0" not in _entries(path):
            return None
        pixels, size = open_archive(path), recipe.data.size
        if pixels.shape[1:3] != (size, size):
            shape = " x ".join(map(str, pixels.shape[1:3]))
            raise ValueError(
                f"evaluate.reference: the images of {given} are {shape}, data.size is {size}; they must agree"
            )
        return Source(f"{len(pixels)} images of {path.name}", len(pixels), lambda i: from_bytes(pixels[i.numpy()]))
    images = Images(recipe.data, given) if given in SPLITS else _folder(path, recipe.data.size)
    title = {"train": "the training split", "held_out": "the held-out split"}.get(given, path.name)
    return Source(f"{len(images)} images of {title}", len(images), lambda i: images.plain(i).images)


def _title(path: Path) -> str:
    """What protocols say of the statistics in a file: of which images, where it says so itself."""
    if PROTOCOL not in _entries(path):
        return f"the statistics in {path.name}, which does not say of which images, by which weights and resize"
    with np.load(path) as archive:
        return f"the statistics in {path.name}, of {json.loads(str(archive[PROTOCOL]))['images']}"


def _entries(path: Path) -> set[str]:
    """The names of the arrays in an archive; ValueError where it is none."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"evaluate.reference: {path} is no .npz archive")
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _names(name: str) -> tuple[str, str]:
    return NAMES.get(name, (f"mu_{name}", f"sigma_{name}"))
