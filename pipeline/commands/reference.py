"""The command `reference`: statistics of all images of a folder, or of a recipe's split, in a file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from pipeline.components import structure
from pipeline.features.choice import build_features
from pipeline.features.extractors import FeatureExtractor
from pipeline.features.moments import Moments
from pipeline.features.passes import ImageRows, process_batches
from pipeline.features.statistics_file import SPLITS, write_statistics
from pipeline.files.paths import given_path
from pipeline.images.ahead import read_plain
from pipeline.images.reading import Images
from pipeline.measuring.image_statistics import gather_statistics
from pipeline.measuring.protocols import computation
from pipeline.measuring.reference import images_of_folder
from pipeline.ranges import RangedFields
from pipeline.recipes.data import Data, Side
from pipeline.recipes.evaluation import Features
from pipeline.recipes.files import is_recipe, parse_settings
from pipeline.recipes.schema import load
from pipeline.recipes.weights import Weights
from pipeline.runs.machine import accelerate


@dataclass
class FolderSettings(RangedFields):
    """What `run.py reference FOLDER` takes."""

    size: Side | tuple[Side, Side]  # pixels that every image is resized and cropped to, as data.size
    channels: Literal["rgb", "grey", "rgba"] = "rgb"
    depth: Literal[8, 16] = 8  # bits of a channel
    features: Features = ("inception",)
    resize: Literal["tensorflow1", "antialias", "clean"] = "tensorflow1"
    weights: Weights = field(default_factory=Weights)


@dataclass(frozen=True)
class MeasuredImages:
    """Images, and the features they are measured on."""

    images: Images
    features: tuple[str, ...]
    weights: dict[str, str]
    resize: str


def reference(words: list[str]) -> None:
    """`run.py reference DATA OUT.npz key=value ...`: statistics of all images of a folder, or of a recipe's split."""
    if len(words) < 2 or not words[1].endswith(".npz"):
        raise ValueError("reference needs DATA (a recipe or a folder of images) and OUT.npz; a folder also size=256")
    given, out, settings = words[0], given_path(words[1]), words[2:]
    accelerator = accelerate()
    measured = images_of_recipe(given, settings) if is_recipe(given) else images_in_folder(given, settings)
    images = measured.images
    features = build_features(measured.features, measured.weights, measured.resize, accelerator.device)
    moments = measure_images(images, features, accelerator)
    if accelerator.is_main_process:
        described = {name: of for feature in features for name, of in feature.statistics().items()}
        about = {"images": f"{len(images)} of {given}, {images.split}", "fingerprint": images.fingerprint()}
        about |= {"source": images.data.source, "split": images.split}
        about |= {"size": images.data.image_size, "prepared": images.data.resize, "features": described}
        write_statistics(out, moments, about | computation())
        print(f"{out}: statistics of {len(images)} images, {', '.join(moments)}; set evaluate.reference={out}")


def measure_images(images: Images, features: list[FeatureExtractor], accelerator: Accelerator) -> dict[str, Moments]:
    """The moments of all images of a split, by name, in memory that does not grow with them."""
    names = [name for feature in features for name in feature.statistics()]
    with tqdm(total=len(images), desc="reference", unit="image", disable=not accelerator.is_main_process) as bar:
        batches = read_plain(images, process_batches(accelerator, len(images), 64))

        def measure(indices: Tensor) -> ImageRows:
            pixels = next(batches).images.to(accelerator.device)
            bar.update(min(len(indices) * accelerator.num_processes, bar.total - bar.n))
            rows = {name: values for feature in features for name, values in feature.extract_all(pixels).items()}
            return ImageRows(summed={name: rows[name] for name in names})

        return gather_statistics(accelerator, len(images), measure, torch.arange(0)).moments


def images_of_recipe(given: str, settings: list[str]) -> MeasuredImages:
    """The split that `evaluate.reference` names, and the features that are the same in every run."""
    recipe = load(given, settings)
    kinds = tuple(kind for kind in recipe.evaluate.features if kind != "classifier")
    if not kinds:
        raise ValueError("evaluate.features names the classifier alone, which every run trains for itself; add others")
    split = recipe.evaluate.reference if recipe.evaluate.reference in SPLITS else "train"
    return MeasuredImages(Images(recipe.data, split), kinds, recipe.weights.files, recipe.evaluate.resize)


def images_in_folder(given: str, settings: list[str]) -> MeasuredImages:
    """All images of a folder, and the features that the command line names."""
    folder = structure(FolderSettings, parse_settings(settings))
    if "classifier" in folder.features:
        raise ValueError("features: the classifier is trained by every run for itself; name others")
    images = images_of_folder(Path(given), Data({}, folder.size, folder.channels, folder.depth))
    return MeasuredImages(images, folder.features, folder.weights.files, folder.resize)
