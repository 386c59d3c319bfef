"""What every kind of frozen network promises: how a recipe chooses it, how it is checked, and how it is loaded."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.recipes.schema import Recipe
from pipeline.teachers.classifier import Classifier
from pipeline.vision.weights import KNOWN, hub_id, locate, locate_model, remedy

if TYPE_CHECKING:
    from pipeline.frozen.networks import FrozenNetworks

STAND_IN = "classifier"  # as a `teacher`: a small one that the library trains on the recipe's own images
STAND_IN_WIDTH = 64  # of its features, unless a loss needs another
log = logging.getLogger(__name__)


class FrozenInput(ABC):
    """The frozen network that a loss or a critic takes as `extractor`.

    A component declares which kind by its class attribute `extractor_kind`, the name of a file of pipeline/frozen/. The
    kind reads the component's arguments: `teacher` is the name of known weights (dinov2_large, ...), a folder, a model
    of the hub, `classifier`, or `auto`: the weights `auto` of the kind where they can be had, else the classifier,
    which the log then says. Under `weights.require` nothing stands in for what cannot be had.
    """

    auto: str = "dinov2_base"  # what `teacher: auto` takes, a name in pipeline.vision.weights
    stand_in_folder: str = "stand_in"  # where the classifier is kept, in the folder of FrozenNetworks

    def __init__(self, recipe: Recipe, component: type, arguments: Mapping[str, Any]):
        self.recipe, self.component, self.arguments = recipe, component, arguments

    @property
    def name(self) -> str:
        """What the log calls the component that takes the network."""
        return self.component.__module__.rpartition(".")[2]

    @property
    def teacher(self) -> str:
        """The network that the recipe comes to: what it states, with `auto` resolved."""
        teacher, files = self.arguments.get("teacher", "auto"), self.recipe.weights.files
        if teacher != "auto":
            return teacher
        there = self.recipe.weights.require or locate(self.auto, files) or hub_id(self.auto, files)
        return self.auto if there else STAND_IN

    @property
    def folder(self) -> Path | None:
        """The folder of the teacher's weights; None of a classifier, and of weights that are not on this machine."""
        teacher, files = self.teacher, self.recipe.weights.files
        if teacher == STAND_IN:
            return None
        return locate(teacher, files) if teacher in KNOWN else locate_model(teacher, files, "teacher")

    @property
    def missing(self) -> list[str]:
        """The known weights that it takes and that are neither on this machine nor fetched from the hub, by name."""
        teacher, files = self.teacher, self.recipe.weights.files
        return [teacher] if teacher in KNOWN and self.folder is None and hub_id(teacher, files) is None else []

    @property
    def replaceable(self) -> bool:
        """Whether the classifier may stand in for it: the recipe names no network of its own."""
        return self.arguments.get("teacher", "auto") == "auto"

    def origin(self) -> str:
        """Which network it is and where its weights are, in a line."""
        teacher, given = self.teacher, self.arguments.get("teacher", "auto")
        if teacher == STAND_IN:
            why = f", for the weights {self.auto} are not on this machine" if given == "auto" else ""
            return f"a small classifier of these images, which is trained first{why}"
        return f"{teacher}, {self.folder or ('missing' if self.missing else 'to be fetched from the hub')}"

    def check(self) -> None:
        """ValueError where the network cannot be had or does not fit; reads the config of the weights, not the weights.

        A place in the message is one inside the component's node; the caller puts the node's own before it, by `at`.
        """
        return

    def width(self) -> int | None:
        """Channels of its features; None where they are not known on this machine."""
        return None

    @abstractmethod
    def load(self, networks: "FrozenNetworks") -> nn.Module:
        """The network, frozen and in evaluation mode."""

    def load_stand_in(self, networks: "FrozenNetworks", dim: int = STAND_IN_WIDTH) -> Classifier:
        """The classifier with `dim` features; where `auto` came to it, the log says so."""
        classifier = networks.stand_in(self.stand_in_folder, dim)
        if self.arguments.get("teacher", "auto") == "auto" and networks.accelerator.is_main_process:
            log.warning(
                "%s: the weights %s are not on this machine, so a %s of the recipe's own images is the teacher; to have"
                " them, %s; to have the stand-in without this line, set teacher: classifier",
                *(self.name, self.auto, classifier.name, remedy(self.auto)),
            )
        return classifier
