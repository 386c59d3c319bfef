"""The frozen network whose class feature codes are contrasted with: DINOv2 where its weights are, else a stand-in."""

import inspect
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from pipeline.components import Arguments, Node, find
from pipeline.frozen.teacher_choice import STAND_IN, chosen, standing_in
from pipeline.images.reading import Images
from pipeline.losses.class_contrast import check_width, projected_width
from pipeline.recipes.schema import Recipe
from pipeline.teachers.vision_model import VisionModel, feature_width
from pipeline.tokenizers.base import Tokenizer
from pipeline.vision.weights import locate_model, require_model

AUTO = "dinov2_base"  # what `auto` takes, a name in pipeline.vision.weights


def takes_class_teacher(node: Node) -> bool:
    return "class_teacher" in inspect.signature(find("losses", node["kind"]).__init__).parameters


def check_class_teacher(node: Node, tokenizer: type[Tokenizer], arguments: Arguments, stated: dict[str, str]) -> None:
    """ValueError where the tokenizer projects no features, or not those of the model that the loss `node` comes to.

    Reads the config of the weights, not the weights.
    """
    width = projected_width(tokenizer, arguments)
    if (given := chosen(node, stated, AUTO)) == STAND_IN:
        return
    if folder := locate_model(given, stated, "teacher"):
        check_width(*feature_width(folder), width)


def class_teacher(
    recipe: Recipe, node: Node, width: int, images: Images, folder: Path, accelerator: Accelerator
) -> nn.Module:
    """The teacher that the loss `node` chooses, frozen and in evaluation mode; `auto` is DINOv2 where that is found.

    The stand-in is a classifier of the recipe's own images with `width` features, kept in `folder/class_teacher`. Where
    it takes DINOv2's place the log says so.
    """
    if (given := chosen(node, recipe.weights, AUTO)) == STAND_IN:
        return standing_in(recipe, node, AUTO, images, folder / "class_teacher", accelerator, width)
    weights = require_model(given, recipe.weights, f"{node['kind']}.teacher")
    return VisionModel.load(weights, size="grid").to(accelerator.device)
