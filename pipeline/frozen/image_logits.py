"""The classifier whose logits of images a loss compares: ConvNeXt-S where its weights are, else a stand-in's."""

from torch import nn

from pipeline.frozen.base import STAND_IN, FrozenInput
from pipeline.frozen.networks import FrozenNetworks
from pipeline.teachers.convnext import ConvNext
from pipeline.validation import SettingError


class ImageLogits(FrozenInput):
    """Called with images [B, C, H, W] in [-1, 1] it gives logits [B, classes]."""

    auto = ConvNext.NAME

    def check(self) -> None:
        if (teacher := self.arguments.get("teacher", "auto")) not in ("auto", STAND_IN, ConvNext.NAME):
            raise SettingError("teacher", f" is {teacher!r}, which gives no logits; name {self.auto} or {STAND_IN}")

    def load(self, networks: FrozenNetworks) -> nn.Module:
        if self.teacher == STAND_IN:
            return self.load_stand_in(networks)
        return networks.convnext()
