"""Whether all that an evaluation measures by is on this machine, and fits the images."""

from pathlib import Path

from pipeline.components import build
from pipeline.features.choice import check_features
from pipeline.features.statistics_file import SPLITS, array_names, check_reference
from pipeline.files.paths import given_path
from pipeline.images.files import open_archive
from pipeline.metrics.base import check_metrics, report_kinds
from pipeline.nn.convolution_stages import stem_and_stages
from pipeline.recipes.data import Data
from pipeline.recipes.schema import Recipe
from pipeline.validation import SettingError


def check_evaluation(recipe: Recipe) -> None:
    """ValueError where there is no such metric or feature, or the reference does not fit them or the images.

    Weights and a reference that are not on this machine are told by `pipeline.checks.weights`.
    """
    evaluate = recipe.evaluate
    check_metrics(evaluate.metrics, report_kinds(), "evaluate.metrics")
    stem_and_stages(recipe.data.size)  # of the judge, which every report trains
    check_features(evaluate.features, recipe.weights.files)
    path = given_path(evaluate.reference)
    if evaluate.reference in SPLITS or not path.exists():
        return
    check_reference(evaluate.reference, evaluate.features)
    if path.is_dir():
        build("datasets", {"kind": "image_folder", "path": str(path), "held_out": 0.0}, split="train")
    elif "arr_0" in array_names(path):
        check_archive(path, recipe.data)


def check_archive(path: Path, data: Data) -> None:
    """ValueError unless the images in an archive have the size and the channels of the recipe's."""
    channels, *sides = data.image_shape
    pixels = open_archive(path)
    if list(pixels.shape[1:]) != [*sides, channels]:
        given, needed = (" x ".join(map(str, shape)) for shape in (pixels.shape[1:], (*sides, channels)))
        raise SettingError(
            "evaluate.reference", f": the images of {path} are {given}, those of data are {needed}; they must agree"
        )
