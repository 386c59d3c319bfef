"""The frozen network whose features a critic judges by: DINO where its weights are, else a stand-in."""

import inspect
from pathlib import Path

from accelerate import Accelerator

from pipeline.components import Node, find
from pipeline.frozen.alignment_teacher import check_teacher
from pipeline.frozen.teacher_choice import STAND_IN, chosen, standing_in
from pipeline.images.reading import Images
from pipeline.recipes.schema import Recipe
from pipeline.teachers.base import Teacher
from pipeline.teachers.vision_model import VisionModel
from pipeline.vision.config import read_depth
from pipeline.vision.weights import require_model

AUTO = "dino_small"  # what `auto` takes, a name in pipeline.vision.weights


def takes_features(node: Node) -> bool:
    return "widths" in inspect.signature(find("critics", node["kind"]).__init__).parameters


def check_critic_teacher(node: Node, stated: dict[str, str], image_size: int, where: str) -> None:
    """ValueError where the teacher that the critic `node` names cannot be had, or has not the layers stated.

    Reads the config of the weights, not the weights; `stated` are the recipe's.
    """
    layers = node.get("layers")
    if node.get("teacher") == STAND_IN and layers is not None:
        raise ValueError(f"{where}.layers is of a transformer; all maps of the classifier are judged: leave it out")
    found = node | {"teacher": chosen(node, stated, AUTO)}
    for layer in [-1] if layers is None or found["teacher"] == STAND_IN else layers:
        check_teacher(found | {"layer": layer}, stated, image_size, where)


def critic_teacher(recipe: Recipe, node: Node, images: Images, folder: Path, accelerator: Accelerator) -> Teacher:
    """The teacher that the critic `node` names by `teacher`, `layers` and `teacher_size`, frozen.

    The stand-in is kept in `folder/stand_in`; where it takes DINO's place the log says so.
    """
    if (given := chosen(node, recipe.weights, AUTO)) != STAND_IN:
        weights = require_model(given, recipe.weights, f"{node['kind']}.teacher")
        layers = node.get("layers")
        layers = quarters(weights) if layers is None else layers
        shown = VisionModel.load(weights, size=node.get("teacher_size"), layers=layers, readout=True)
        return shown.to(accelerator.device)
    return standing_in(recipe, node, AUTO, images, folder / "stand_in", accelerator)


def quarters(weights: Path) -> list[int]:
    """What the first block reads and what each quarter of the blocks leaves; the last map of a model without blocks."""
    depth = read_depth(weights)
    return [-1] if depth is None else [depth * i // 4 for i in range(5)]
