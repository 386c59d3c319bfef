"""The frozen networks of a stage: published ones from their folders, or classifiers of the recipe's own images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from pipeline.components import Node, check, find
from pipeline.frozen import stand_in
from pipeline.frozen.base import STAND_IN_WIDTH, FrozenInput
from pipeline.images.reading import Images
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.schema import Recipe
from pipeline.teachers.classifier import Classifier
from pipeline.teachers.convnext import ConvNext
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.teachers.vision_model import VisionModel
from pipeline.vision.backbone import read_depth
from pipeline.vision.weights import expect, require_model


@dataclass(frozen=True)
class FrozenNetworks:
    """Loads what losses and critics declare; classifiers are trained once and kept in `folder`, each by its name."""

    recipe: Recipe
    images: Images
    folder: Path
    accelerator: Accelerator

    def extractor(self, slot: str, node: Node) -> nn.Module | None:
        """The network that the loss or the critic of a node declares; None where it declares none."""
        declared = declared_input(self.recipe, slot, node)
        return None if declared is None else self.load(declared)

    def load(self, declared: FrozenInput) -> nn.Module:
        """The network on the accelerator's device, frozen and in evaluation mode."""
        return declared.load(self).requires_grad_(False).eval().to(self.accelerator.device)

    def vision_model(self, teacher: str, place: str, **options: Any) -> VisionModel:
        """The vision model that `teacher` names at a `place` of the recipe; `options` are of `VisionModel.load`."""
        return VisionModel.load(require_model(teacher, self.recipe.weights.files, place), **options)

    def depth(self, teacher: str, place: str) -> int | None:
        """The blocks of that model; None of one without blocks."""
        return read_depth(require_model(teacher, self.recipe.weights.files, place))

    def lpips(self) -> LpipsVgg:
        """LPIPS-VGG, of its two files."""
        return LpipsVgg.load(*(expect(name, self.recipe.weights.files) for name in LpipsVgg.FILES))

    def convnext(self) -> ConvNext:
        """The ConvNeXt-S of ImageNet's classes."""
        return ConvNext.load(expect(ConvNext.NAME, self.recipe.weights.files))

    def stand_in(self, name: str = FrozenInput.stand_in_folder, dim: int = STAND_IN_WIDTH) -> Classifier:
        """The classifier with `dim` features that is kept under this name."""
        return stand_in.load_stand_in(self.recipe, self.images, self.folder / name, self.accelerator, dim)


def declared_input(recipe: Recipe, slot: str, node: Node) -> FrozenInput | None:
    """The kind of frozen network that the loss or the critic of a node declares; None where it declares none."""
    component, arguments = check(slot, node, DERIVED[slot])
    if component.extractor_kind is None:
        return None
    return find("frozen", component.extractor_kind)(recipe, component, arguments)


def check_extractor(recipe: Recipe, slot: str, node: Node) -> None:
    """ValueError where the frozen network that the loss or the critic of a node declares cannot be had or used."""
    if (declared := declared_input(recipe, slot, node)) is not None:
        declared.check()
