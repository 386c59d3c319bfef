"""The feature that a frozen network has of a whole image, which a tokenizer predicts from its code."""

from torch import nn

from pipeline.frozen.base import STAND_IN, FrozenInput
from pipeline.frozen.networks import FrozenNetworks
from pipeline.recipes.building import find_tokenizer
from pipeline.vision.backbone import read_features


class ImageEmbedding(FrozenInput):
    """The teacher's `features`, of images at its own size; a classifier is trained with as many as are predicted."""

    stand_in_folder = "image_teacher"

    @property
    def needed_width(self) -> int:
        """Channels that the tokenizer predicts; ValueError where it predicts none."""
        return self.component.predicted_width(*find_tokenizer(self.recipe))

    def check(self) -> None:
        width = self.needed_width
        if self.folder is not None:
            self.component.check_width(*read_features(self.folder), width)

    def load(self, networks: FrozenNetworks) -> nn.Module:
        if self.teacher == STAND_IN:
            return self.load_stand_in(networks, self.needed_width)
        return networks.vision_model(self.teacher, f"{self.name}.teacher")
