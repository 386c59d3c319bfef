"""The feature that a frozen network has of a whole image, which codes are contrasted with."""

from torch import nn

from pipeline.frozen.base import STAND_IN, FrozenInput
from pipeline.frozen.networks import FrozenNetworks
from pipeline.nn.image_size import sides_of, size_text
from pipeline.recipes.building import find_tokenizer
from pipeline.validation import SettingError
from pipeline.vision.backbone import read_features, read_kind
from pipeline.vision.dinov2_weights import resample_patches


class ClassFeatures(FrozenInput):
    """The teacher's `features`; a classifier is trained with as many channels as the loss needs for the tokenizer.

    With `teacher_patch` a DINOv2 reads images as they are, in patches of so many pixels per side.
    """

    stand_in_folder = "class_teacher"

    @property
    def needed_width(self) -> int:
        """Channels that the loss needs; ValueError where the tokenizer does not project features."""
        return self.component.projected_width(*find_tokenizer(self.recipe))

    @property
    def patch(self) -> int | None:
        return self.arguments.get("teacher_patch")

    def check(self) -> None:
        width, folder = self.needed_width, self.folder
        if self.patch is not None:
            self.check_patch()
        if folder is not None:
            self.component.check_width(*read_features(folder), width)

    def check_patch(self) -> None:
        """ValueError where the teacher's patches cannot be resampled to `teacher_patch`."""
        size, folder = self.recipe.data.size, self.folder
        if any(side % self.patch for side in sides_of(size)):
            pixels = size_text(size)
            raise SettingError("teacher_patch", f" is {self.patch}, which does not divide {pixels} pixels; change one")
        if not isinstance(size, int):
            raise SettingError("teacher_patch", f" is for square images, not {size_text(size)}; leave it out")
        if self.arguments.get("teacher", "auto") == STAND_IN:
            raise SettingError("teacher_patch", " is for a DINOv2, and the teacher is a classifier; leave it out")
        if folder is not None and (kind := read_kind(folder)) != "dinov2":
            raise SettingError("teacher_patch", f" is for a DINOv2, and {folder} holds a {kind}; leave it out")

    def load(self, networks: FrozenNetworks) -> nn.Module:
        if self.teacher == STAND_IN:
            return self.load_stand_in(networks, self.needed_width)
        place = f"{self.name}.teacher"
        if self.patch is None:
            return networks.vision_model(self.teacher, place, size="grid")
        size = self.recipe.data.size
        teacher = networks.vision_model(self.teacher, place, kind="dinov2", size=size)
        resample_patches(teacher.model, self.patch, size // self.patch)
        return teacher
