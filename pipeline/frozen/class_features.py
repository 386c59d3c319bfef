"""The feature that a frozen network has of a whole image, which codes are contrasted with."""

from torch import nn

from pipeline.frozen.base import STAND_IN, FrozenInput
from pipeline.frozen.networks import FrozenNetworks
from pipeline.recipes.building import find_tokenizer
from pipeline.teachers.vision_model import VisionModel
from pipeline.vision.backbone import read_features
from pipeline.vision.weights import require_model


class ClassFeatures(FrozenInput):
    """The teacher's `features`; a classifier is trained with as many channels as the loss needs for the tokenizer."""

    stand_in_folder = "class_teacher"

    @property
    def needed_width(self) -> int:
        """Channels that the loss needs; ValueError where the tokenizer does not project features."""
        return self.component.projected_width(*find_tokenizer(self.recipe))

    def check(self) -> None:
        width, folder = self.needed_width, self.folder
        if folder is not None:
            self.component.check_width(*read_features(folder), width)

    def load(self, networks: FrozenNetworks) -> nn.Module:
        if self.teacher == STAND_IN:
            return self.load_stand_in(networks, self.needed_width)
        weights = require_model(self.teacher, self.recipe.weights.files, f"{self.name}.teacher")
        return VisionModel.load(weights, size="grid")
