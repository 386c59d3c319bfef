"""The class token that a frozen network has of a whole image, which a head on codes is contrasted with."""

import torch
from torch import Tensor, nn

from pipeline.frozen.base import STAND_IN, STAND_IN_WIDTH, FrozenInput
from pipeline.frozen.networks import FrozenNetworks
from pipeline.teachers.classifier import Classifier
from pipeline.teachers.vision_model import VisionModel
from pipeline.vision.backbone import read_config


class ClassTargets(FrozenInput):
    """The class token of the teacher, which reads images of `teacher_size`; a classifier has its features."""

    def width(self) -> int | None:
        if self.teacher == STAND_IN:
            return STAND_IN_WIDTH
        return None if self.folder is None else read_config(self.folder).get("hidden_size")

    def load(self, networks: FrozenNetworks) -> "ClassTarget":
        if self.teacher == STAND_IN:
            return ClassTarget(self.load_stand_in(networks))
        size = self.arguments.get("teacher_size", 224)
        return ClassTarget(networks.vision_model(self.teacher, f"{self.name}.teacher", size=size))


class ClassTarget(nn.Module):
    """Images [B, C, H, W] in [-1, 1] to the class token of a teacher's last hidden state, [B, width]."""

    def __init__(self, teacher: VisionModel | Classifier):
        super().__init__()
        self.teacher, self.name = teacher.requires_grad_(False).eval(), teacher.name
        self.width = teacher.dim if isinstance(teacher, Classifier) else teacher.width

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if isinstance(self.teacher, Classifier):
            return self.teacher.features(images)
        return self.teacher.class_token_and_map(images, -1)[0]
