"""What every teacher promises: feature maps of images, with a name for the numbers that come of them."""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.nn.resize import resize_map

Resize = Literal["antialiased", "bicubic", "area", "bilinear"]  # how a vision model's images are brought to its size
ReadColours = Literal["normalised", "unchanged"]  # by the model's mean and std, or images in [-1, 1] as they are
GELU = Literal["exact", "tanh"]


class Teacher(Protocol):
    """A frozen network that others learn from."""

    name: str
    widths: tuple[int, ...]  # channels of each map

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w], float32, of images [B, C, H, W] in [-1, 1], as `as_rgb` takes them."""


class Tap(nn.Module):
    """A map of a teacher, number `index`, or several; it stays frozen and in evaluation mode whatever it is a part of.

    Of several, `forward` gives the first. Raises ValueError where the teacher has no such map.
    """

    def __init__(self, teacher: Teacher, index: int = -1, *others: int, class_token: bool = False):
        super().__init__()
        count = len(teacher.widths)
        for one in (index, *others):
            if not -count <= one < count:
                raise ValueError(
                    f"the teacher {teacher.name} has maps 0 to {count - 1}, or -{count} to -1, and no {one}"
                )
        self.teacher, self.index, self.others = teacher.requires_grad_(False).eval(), index, others
        self.name, self.width, self.class_token = teacher.name, teacher.widths[index], class_token

    def train(self, mode: bool = True) -> "Tap":
        super().train(mode)
        self.teacher.eval()
        return self

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] in [-1, 1] to the maps [B, C, h, w], through which a gradient goes back to the images."""
        maps = self.teacher.maps(images)
        return [maps[index] for index in (self.index, *self.others)]

    @torch.no_grad()
    def forward(self, images: Tensor, grid: Sequence[int]) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] to a feature for every position of `grid`, [B, h * w, width], row by row.

        Maps of another grid are resampled as `resize_map` does it. With `class_token` the teacher's comes before them,
        [B, 1 + h * w, width].
        """
        if not self.class_token:
            return resize_map(self.maps(images)[0], grid).flatten(2).mT
        token, maps = self.teacher.class_token_and_map(images, self.index)
        return torch.cat([token[:, None], resize_map(maps, grid).flatten(2).mT], dim=1)
