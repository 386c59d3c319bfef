"""Resizes of images for published features, which are not interchangeable, and of feature maps."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_tensorflow1(images: Tensor, height: int, width: int) -> Tensor:
    """images [B, C, H, W] to [B, C, height, width] in float32: source = destination * (in / out), without the shift of
    half a pixel and without antialiasing; neighbours beyond the border are those at it."""
    low, high, weight = _neighbours(images.shape[2], height, images.device)
    rows = torch.lerp(images.float()[:, :, low], images.float()[:, :, high], weight[:, None])
    low, high, weight = _neighbours(images.shape[3], width, images.device)
    return torch.lerp(rows[..., low], rows[..., high], weight)


def resize_clean(images: Tensor, height: int, width: int) -> Tensor:
    """images [B, C, H, W] to [B, C, height, width] in float32: bicubic (a = -1/2) with antialiasing, as Pillow resizes
    channels of floats; neither clipped nor rounded (Parmar et al., arXiv:2104.11222)."""
    return F.interpolate(images.float(), (height, width), mode="bicubic", antialias=True)


def resize_antialias(images: Tensor, height: int, width: int) -> Tensor:
    """As `resize_clean`, clipped to [0, 255] and rounded after the rows and after the columns, as Pillow does with
    8-bit images; where its sums of whole numbers fall the other way, one grey level apart."""
    narrow = resize_clean(images, images.shape[2], width).clamp(0, 255).round()
    return resize_clean(narrow, height, width).clamp(0, 255).round()


def resize_map(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Feature maps [B, C, h, w] on `grid`: means over areas where neither side grows, else bilinear between centres."""
    grid = list(grid)
    if list(maps.shape[2:]) == grid:
        return maps
    if all(after <= before for before, after in zip(maps.shape[2:], grid)):
        return F.adaptive_avg_pool2d(maps, grid)
    return F.interpolate(maps, grid, mode="bilinear", antialias=False)


def _neighbours(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the two source pixels of each destination pixel, and the weight of the second."""
    source = torch.arange(after, dtype=torch.float32, device=device) * (before / after)
    low = source.floor().long()
    return low, (low + 1).clamp(max=before - 1), source - low


RULES = {"tensorflow1": resize_tensorflow1, "antialias": resize_antialias, "clean": resize_clean}
DESCRIPTIONS = {
    "tensorflow1": "bilinear as in TensorFlow 1, without antialiasing",
    "antialias": "bicubic with antialiasing, rounded to 8 bits",
    "clean": "bicubic with antialiasing in floats, as clean-fid",
}
