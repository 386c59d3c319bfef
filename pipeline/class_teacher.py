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
from pipeline.teachers.vision_model import VisionModel, called, read_config, read_kind
from pipeline.tokenizers.base import Tokenizer
from pipeline.weights import expect, hub_id, locate, remedy, require

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
    width = projected_width(tokenizer, arguments)
    if takes_dinov2(node, stated) and (folder := expect(WEIGHTS, stated)):
        kind, found = read_kind(folder, "dinov2"), read_config(folder)["hidden_size"]
        check_width(called(kind, found), found, width)


def class_teacher(
    recipe: Recipe, node: Node, width: int, images: Images, folder: Path, accelerator: Accelerator
) -> nn.Module:
    """The teacher that the loss `node` chooses, frozen and in evaluation mode; `auto` is DINOv2 where that is found.

    The stand-in is a classifier of the recipe's own images with `width` features, kept in `folder/class_teacher`. Where
    it takes DINOv2's place the log says so.
    """
    if takes_dinov2(node, recipe.weights):
        weights = require(WEIGHTS, recipe.weights)
        return VisionModel.load(weights, "dinov2", size="grid").to(accelerator.device)
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


def takes_dinov2(node: Node, stated: dict[str, str]) -> bool:
    """Whether the loss `node` comes to DINOv2, on this machine or not, and not to the stand-in."""
    if chosen(node) == "auto":
        return bool(locate(WEIGHTS, stated) or hub_id(WEIGHTS, stated))
    return chosen(node) == "dinov2"
