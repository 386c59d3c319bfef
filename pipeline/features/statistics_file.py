"""Files of stored feature statistics: means and covariances of real images, as samples are measured against."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.datasets.base import MissingImages
from pipeline.features.extractors import FeatureExtractor
from pipeline.features.moments import Gaussian, Moments
from pipeline.files.paths import given_path
from pipeline.files.writing import write_arrays
from pipeline.images.archives import check_array, read_array
from pipeline.images.reading import Images
from pipeline.recipes.data import Data

SPLITS = ("train", "held_out")
NAMES = {"inception": ("mu", "sigma"), "inception_spatial": ("mu_s", "sigma_s")}  # as ADM and pytorch-fid write them
PROTOCOL = "protocol"  # a text in the archives that `write_statistics` makes
AGREE = ("weights_sha256", "width", "resize")  # what features have in common that are measured against each other


def check_reference(given: str, kinds: tuple[str, ...]) -> None:
    """ValueError where `evaluate.reference` is not there, or has neither images nor statistics of these features."""
    path = given_path(given)
    if given in SPLITS or path.is_dir():
        return
    if missing := missing_reference(given):
        raise ValueError(missing)
    held = array_names(path)
    lacking = [kind for kind in kinds if not set(statistics_names(kind)) <= held]
    if "arr_0" not in held and lacking:
        raise ValueError(
            f"evaluate.reference: {given} holds no images, and no statistics of {', '.join(lacking)}; take these out of"
            " evaluate.features, or make statistics of them by: python run.py reference RECIPE OUT.npz"
        )
    for name in ["arr_0", *(key for kind in kinds for key in statistics_names(kind))]:
        if name in held:
            check_array(path, name)
    check_images_of(path)


def missing_reference(given: str) -> str | None:
    """What to say where an `evaluate.reference` is not there; None where it is."""
    if given in SPLITS or given_path(given).exists():
        return None
    return f"evaluate.reference: there is no file or folder {given!r}; state train, held_out, an .npz or a folder"


def check_images_of(path: Path) -> None:
    """ValueError where the images that a file's statistics are of have changed since, as far as they are here.

    Files of other programs do not say of which images they are.
    """
    if PROTOCOL not in array_names(path):
        return
    about = read_protocol(path)
    if "source" not in about:  # written before files said where their images are
        return
    try:
        images = Images(Data(source=about["source"], size=about["size"], resize=about["prepared"]), about["split"])
    except MissingImages:
        return
    if images.fingerprint() != about["fingerprint"]:
        raise ValueError(
            f"evaluate.reference: the images of {about['images']} have changed since {path} was made; make it again by:"
            " python run.py reference"
        )


def read_protocol(path: Path) -> dict[str, Any]:
    """What an archive of `write_statistics` says of its statistics."""
    return json.loads(str(read_array(path, PROTOCOL)))


def read_statistics(path: Path, features: list[FeatureExtractor]) -> dict[str, Gaussian | Moments]:
    """The mean and covariance that an archive holds of each of the features it has statistics of.

    Raises ValueError where they are of other features than these: of another width or, where the archive states
    them, other weights or another resize.
    """
    held, moments = array_names(path), {}
    written = read_protocol(path)["features"] if PROTOCOL in held else {}
    for name, described in ((n, d) for feature in features for n, d in feature.statistics().items()):
        keys = statistics_names(name)
        if not set(keys) <= held:
            continue
        moments[name] = Gaussian(*(torch.from_numpy(read_array(path, key).astype(np.float64)) for key in keys))
        theirs = written.get(name, {"width": len(moments[name].mean)})
        if unlike := [key for key in AGREE if key in theirs and theirs[key] != described[key]]:
            raise ValueError(
                f"{path}: its statistics of {name} have {unlike[0]} {theirs[unlike[0]]!r}, the features here"
                f" {described[unlike[0]]!r}; make them again by: python run.py reference"
            )
    return moments


def write_statistics(path: Path, moments: dict[str, Moments], protocol: dict[str, Any]) -> None:
    """Mean and covariance by features, Inception's under the names that ADM and pytorch-fid read, and the protocol."""
    arrays = {}
    for name, moment in moments.items():
        values = (moment.mean.numpy(), moment.covariance.numpy())
        arrays |= dict(zip(statistics_names(name), values))
    write_arrays(path, arrays | {PROTOCOL: np.array(json.dumps(protocol))})


def file_title(path: Path) -> str:
    """What a protocol calls the statistics in a file: with the images they are of, where the file states them."""
    if PROTOCOL not in array_names(path):
        return f"the statistics in {path.name}, which does not say of which images, by which weights and resize"
    return f"the statistics in {path.name}, of {read_protocol(path)['images']}"


def array_names(path: Path) -> set[str]:
    """The names of the arrays in an archive; ValueError where it is none."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"evaluate.reference: {path} is no .npz archive")
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def statistics_names(name: str) -> tuple[str, str]:
    """The names of the arrays that hold the mean and the covariance of a feature."""
    return NAMES.get(name, (f"mu_{name}", f"sigma_{name}"))
