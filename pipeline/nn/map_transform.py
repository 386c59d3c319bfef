"""Scaling and rotation of maps, and of images alike."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class MapTransform:
    """Maps or images [B, C, H, W] with sides `scale` times as long, rounded down, and then turned by `turns` quarters.

    They are resampled bilinearly, without antialiasing, as EQ-VAE has it (Kouzelis et al., arXiv:2502.09509). The
    default leaves what it is given as it is.
    """

    scale: float = 1.0
    turns: int = 0

    @torch.compiler.disable
    def __call__(self, maps: Tensor) -> Tensor:
        if self.scale != 1:
            maps = F.interpolate(maps, [int(side * self.scale + 1e-6) for side in maps.shape[2:]], mode="bilinear")
        return maps.rot90(self.turns, dims=(2, 3)) if self.turns else maps


UNCHANGED = MapTransform()
