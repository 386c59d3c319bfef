"""Scaling and rotation of maps, and of images alike."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Filter = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class MapTransform:
    """Maps or images [B, C, H, W] with sides `scale` times as long, rounded down, and then turned by `turns` quarters.

    They are resampled bilinearly, without antialiasing, as EQ-VAE has it (Kouzelis et al., arXiv:2502.09509); images
    by `of_images` with antialiasing, as VFM-VAE has it (arXiv:2510.18457). Turns go from columns to rows. The default
    leaves what it is given as it is.
    """

    scale: float = 1.0
    turns: int = 0
    filter: Filter = "bilinear"  # of images that shrink

    @property
    def changes_nothing(self) -> bool:
        return self.scale == 1 and not self.turns

    def of_images(self, images: Tensor) -> Tensor:
        if self.scale != 1:
            sides = [int(side * self.scale + 1e-6) for side in images.shape[2:]]
            images = F.interpolate(images, sides, mode=self.filter, antialias=True)
        return self.turn(images)

    def turn(self, maps: Tensor) -> Tensor:
        return maps.rot90(self.turns, dims=(3, 2)) if self.turns else maps

    @torch.compiler.disable
    def __call__(self, maps: Tensor) -> Tensor:
        if self.scale != 1:
            maps = F.interpolate(maps, [int(side * self.scale + 1e-6) for side in maps.shape[2:]], mode="bilinear")
        return self.turn(maps)


UNCHANGED = MapTransform()
