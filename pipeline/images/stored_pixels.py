"""Images in [-1, 1] as the pixels of files, of 8 bits or of 16, and back."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.nn.finite import check_finite

Depth = Literal[8, 16]


def to_pixels(images: Tensor, depth: Depth = 8) -> np.ndarray:
    """Images [B, C, H, W] in [-1, 1], clipped and rounded, as uint8 or uint16 [B, H, W, C]; NotFinite of others."""
    check_finite(images, "the decoded image")
    levels = ((images.float().clamp(-1, 1) + 1) * ((2**depth - 1) / 2)).round()
    return levels.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8 if depth == 8 else np.uint16)


def as_saved(images: Tensor, depth: Depth = 8) -> Tensor:
    """Images in [-1, 1] as they come back from a file, in [-1, 1] float32."""
    check_finite(images, "the decoded image")
    white = 2**depth - 1
    return ((images.float().clamp(-1, 1) + 1) * (white / 2)).round() / (white / 2) - 1


def from_pixels(pixels: np.ndarray) -> Tensor:
    """uint8 or uint16 [B, H, W, C] as images [B, C, H, W] in [-1, 1] float32; the inverse of `to_pixels`."""
    white = np.iinfo(pixels.dtype).max
    values = torch.from_numpy(pixels if white == 255 else pixels.astype(np.float32)).permute(0, 3, 1, 2)
    return values.to(torch.float32, memory_format=torch.contiguous_format).div_(white / 2).sub_(1)


def as_picture(pixels: np.ndarray) -> Image.Image:
    """[H, W, C] as L, RGB or RGBA, and as I;16 of uint16, which a PNG keeps."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def read_picture(path: Path) -> np.ndarray:
    """The pixels of a PNG as `as_picture` wrote it, [H, W, C]."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]
