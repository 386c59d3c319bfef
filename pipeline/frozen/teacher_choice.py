"""Which frozen network a recipe's `teacher` comes to: a published one, or a classifier that the library trains."""

import logging
from pathlib import Path

from accelerate import Accelerator

from pipeline.components import Node
from pipeline.frozen.stand_in import stand_in
from pipeline.images.reading import Images
from pipeline.recipes.schema import Recipe
from pipeline.teachers.classifier import Classifier
from pipeline.vision.weights import hub_id, locate, remedy

STAND_IN = "classifier"
log = logging.getLogger(__name__)


def chosen(node: Node, stated: dict[str, str], auto: str) -> str:
    """What is stated; of `auto`, the weights of the name `auto` where they can be had, else the stand-in.

    A name is one in pipeline.vision.weights, a folder, or a model of the hub. `stated` are the recipe's weights.
    """
    given = node.get("teacher", "auto")
    if given != "auto":
        return given
    return auto if locate(auto, stated) or hub_id(auto, stated) else STAND_IN


def standing_in(
    recipe: Recipe, node: Node, auto: str, images: Images, kept: Path, accelerator: Accelerator, dim: int = 64
) -> Classifier:
    """The stand-in for what `node` states, with `dim` features, in the folder `kept`.

    Where nobody asked for it, but it takes the place of the weights `auto`, the log says so.
    """
    teacher = stand_in(recipe, images, kept, accelerator, dim)
    if node.get("teacher", "auto") == "auto" and accelerator.is_main_process:
        log.warning(
            "%s: the weights %s are not on this machine, so a %s of the recipe's own images is the teacher; to have"
            " them, %s; to have the stand-in without this line, set teacher: classifier",
            *(node["kind"], auto, teacher.name, remedy(auto)),
        )
    return teacher
