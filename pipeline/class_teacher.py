"""The frozen network whose class feature codes are contrasted with: DINOv2 where its weights are, else a stand-in."""

import inspect
import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from pipeline.components import Node, find
from pipeline.images import Images
from pipeline.losses.class_contrast import check_width, projected_width
from pipeline.recipe import Recipe
from pipeline.stand_in import stand_in
from pipeline.teachers.dinov2 import Dinov2, called, read_width
from pipeline.tokenizers.base import Tokenizer
from pipeline.weights import locate, remedy, require

WEIGHTS = "dinov2_base"  # their name in pipeline.weights
log = logging.getLogger(__name__)


def takes_class_teacher(node: Node) -> bool:
    return "class_teacher" in inspect.signature(find("losses", node["kind"]).__init__).parameters


def check_class_teacher(
    node: Node, tokenizer: type[Tokenizer], arguments: dict[str, Any], stated: dict[str, str]
) -> None:
    """ValueError where the tokenizer projects no features, or not those of the DINOv2 that the loss `node` comes to.

    Reads the config of the weights, not the weights.
    """
    width, folder = projected_width(tokenizer, arguments), dinov2_folder(node, stated)
    if folder is not None:
        found = read_width(folder)
        check_width(called(found), found, width)


def class_teacher(
    recipe: Recipe, node: Node, width: int, images: Images, folder: Path, accelerator: Accelerator
) -> nn.Module:
    """The teacher that the loss `node` chooses, frozen and in evaluation mode; `auto` is DINOv2 where that is found.

    The stand-in is a classifier of the recipe's own images with `width` features, kept in `folder/class_teacher`. Where
    it takes DINOv2's place the log says so.
    """
    weights = dinov2_folder(node, recipe.weights)
    if weights is not None:
        return Dinov2.load(weights).to(accelerator.device)
    teacher = stand_in(recipe, images, folder / "class_teacher", accelerator, width)
    if chosen(node) == "auto" and accelerator.is_main_process:
        log.warning(
            "%s: the weights %s are not on this machine, so a %s of the recipe's own images is the teacher; for DINOv2,"
            " %s; to have the stand-in without this line, set teacher: classifier",
            *(node["kind"], WEIGHTS, teacher.name, remedy(WEIGHTS)),
        )
    return teacher


def chosen(node: Node) -> str:
    return node.get("teacher", "auto")


def dinov2_folder(node: Node, stated: dict[str, str]) -> Path | None:
    """The folder of the DINOv2 that the loss `node` comes to, None for the stand-in; ValueError where it is missing."""
    if chosen(node) == "classifier":
        return None
    return require(WEIGHTS, stated) if chosen(node) == "dinov2" else locate(WEIGHTS, stated)
