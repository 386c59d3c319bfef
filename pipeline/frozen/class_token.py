"""The feature that a frozen network has of a whole image, as the class token of its code."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.frozen.base import STAND_IN, STAND_IN_WIDTH
from pipeline.frozen.feature_maps import FeatureMaps
from pipeline.frozen.networks import FrozenNetworks
from pipeline.recipes.schema import Recipe
from pipeline.validation import at
from pipeline.vision.backbone import read_features

PLACE = "latents.class_token"  # where a recipe names the network


class ClassToken(FeatureMaps):
    """The teacher that `latents.class_token` names."""

    name = PLACE

    def __init__(self, recipe: Recipe):
        super().__init__(recipe, type(self), {"teacher": recipe.latents.class_token})

    def load(self, networks: FrozenNetworks) -> "ClassTokenFeature":
        """ValueError unless it has the width that is modelled."""
        feature = ClassTokenFeature(super().load(networks).teacher, self.recipe.latents.class_token_norm)
        with at(PLACE):
            self.check_width(feature.name, feature.width)
        return feature

    def check(self) -> None:
        super().check()
        if self.teacher == STAND_IN:
            self.check_width("the classifier", STAND_IN_WIDTH)
        elif self.folder is not None:
            self.check_width(*read_features(self.folder))

    def check_width(self, name: str, width: int) -> None:
        """ValueError unless a feature of `width` values is what the generator's objective models."""
        modelled = self.recipe.generator.objective.get("class_token")
        if width != modelled:
            raise ValueError(
                f"{name} has {width} values; set generator.objective.class_token to that, not to {modelled}"
            )


class ClassTokenFeature(nn.Module):
    """A teacher's feature of a whole image.

    With the norm `plain` it has mean 0 and std 1 over its channels, a layer norm without weights, so that its scale
    fits that of the noise; with `none` it is as the teacher gives it: in REG, DINOv2's class token after its last norm.
    """

    def __init__(self, teacher: Any, norm: Literal["plain", "none"] = "plain"):
        super().__init__()
        self.norm = norm
        self.teacher = teacher.requires_grad_(False).eval()
        self.name, self.width = teacher.name, teacher.dim

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] to [B, width]."""
        feature = self.teacher.features(images).float()
        return F.layer_norm(feature, (self.width,)) if self.norm == "plain" else feature
