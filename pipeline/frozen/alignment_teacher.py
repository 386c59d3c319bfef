"""The frozen network whose feature maps codes, hidden states or images are compared in, as a loss names it."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.components import Node, find
from pipeline.frozen.teacher_choice import STAND_IN, chosen, standing_in
from pipeline.images.reading import Images
from pipeline.nn.convolution_stages import WIDTH, channels, shape
from pipeline.recipes.schema import Recipe
from pipeline.teachers.base import Tap
from pipeline.teachers.vision_model import VisionModel, check_layer
from pipeline.vision.config import read_config, read_depth, read_kind
from pipeline.vision.weights import locate_model, require_model

AUTO = "dinov2_base"  # what `auto` takes, a name in pipeline.vision.weights


def takes_tap(node: Node) -> bool:
    return "tap" in inspect.signature(find("losses", node["kind"]).__init__).parameters


def check_teacher(node: Node, stated: dict[str, str], image_size: int, where: str) -> None:
    """ValueError where the teacher that the loss `node` names cannot be had, or has no layer of that number.

    Reads the config of the weights, not the weights; `stated` are the recipe's.
    """
    if (given := chosen(node, stated, AUTO)) == STAND_IN:
        count = shape(image_size)["stages"] + 1
        for layer in layers_of(node):
            if not -count <= layer < count:
                raise ValueError(f"{where}: layer {layer} is asked for; the classifier's are 0 to {count - 1}, or -1")
        return
    folder = locate_model(given, stated, f"{where}.teacher")
    if folder is not None and (count := read_depth(folder)) is not None:
        try:
            for layer in layers_of(node):
                check_layer(layer, count, read_kind(folder))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def teacher_width(node: Node, stated: dict[str, str], image_size: int) -> int | None:
    """Channels of the map of the teacher that the loss `node` names; None where they are not known on this machine."""
    if (given := chosen(node, stated, AUTO)) == STAND_IN:
        return channels(WIDTH, shape(image_size)["stages"])[node.get("layer", -1)]
    folder = locate_model(given, stated, "teacher")
    return None if folder is None else read_config(folder).get("hidden_size")


def alignment_teacher(recipe: Recipe, node: Node, images: Images, folder: Path, accelerator: Accelerator) -> Tap:
    """The map of the teacher that the loss `node` names by `teacher`, `layer` and `teacher_size`, frozen.

    `teacher` is the name of known weights (dinov2_large, ...), a folder, a model of the hub, or `classifier`: a small
    one of the recipe's own images, kept in `folder/stand_in`; `layer` numbers its maps, fine to coarse, or `layers`
    does, of several. `auto` is DINOv2-B where that is found, else the classifier, which the log then says.
    """
    layers = layers_of(node)
    if (given := chosen(node, recipe.weights, AUTO)) != STAND_IN:
        weights = require_model(given, recipe.weights, f"{node['kind']}.teacher")
        size = node.get("teacher_size", "grid")
        return Tap(VisionModel.load(weights, size=size, layers=layers), *range(len(layers))).to(accelerator.device)
    return Tap(standing_in(recipe, node, AUTO, images, folder / "stand_in", accelerator), *layers)


def layers_of(node: Node) -> list[int]:
    """Numbers of the maps that the loss `node` asks for: its `layers`, else its one `layer`."""
    return list(node.get("layers") or [node.get("layer", -1)])


class ClassFeature(nn.Module):
    """What a frozen teacher makes of a whole image, as the class token of its code.

    Each has mean 0 and std 1 over its channels, a layer norm without weights: so its scale fits that of the noise.
    """

    def __init__(self, teacher: Any):
        super().__init__()
        self.teacher = teacher.requires_grad_(False).eval()
        self.name, self.width = teacher.name, teacher.dim

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] to [B, width]."""
        return F.layer_norm(self.teacher.features(images).float(), (self.width,))


def class_feature(recipe: Recipe, images: Images, folder: Path, accelerator: Accelerator) -> ClassFeature:
    """That of the teacher which `latents.class_token` names; ValueError unless it has the width that is modelled."""
    node = {"kind": "latents.class_token", "teacher": recipe.latents.class_token}
    found = ClassFeature(alignment_teacher(recipe, node, images, folder, accelerator).teacher)
    stated = recipe.generator.objective.get("class_token")
    if found.width != stated:
        raise ValueError(
            f"latents.class_token: {found.name} has {found.width} values; set generator.objective.class_token to that,"
            f" not to {stated}"
        )
    return found


class Stored(nn.Module):
    """A teacher of which features are stored, and nothing else is needed."""

    def __init__(self, name: str, width: int):
        super().__init__()
        self.name, self.widths = name, (width,)

    def maps(self, images: Tensor) -> list[Tensor]:
        raise ValueError(f"of the teacher {self.name} features are stored; it sees no images")


def stored_teacher(described: Mapping[str, Any]) -> Tap:
    """What stands for a teacher whose features a store of codes holds, as its manifest describes them."""
    return Tap(Stored(described["teacher"], described["width"]))
