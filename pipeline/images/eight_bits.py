"""Images in [-1, 1] as the 8-bit pixels of files, and back."""

import numpy as np
import torch
from torch import Tensor

from pipeline.nn.finite import check_finite


def levels(images: Tensor) -> Tensor:
    """Images in [-1, 1], clipped and rounded to what a file holds, in [0, 255] float32; NotFinite where one is not."""
    check_finite(images, "the decoded image")
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round()


def eight_bits(images: Tensor) -> Tensor:
    """Images in [-1, 1] as they come back from a file, in [-1, 1] float32."""
    return levels(images) / 127.5 - 1


def to_bytes(images: Tensor) -> np.ndarray:
    """Images [B, 3, H, W] in [-1, 1] as uint8 [B, H, W, 3]."""
    return levels(images).byte().permute(0, 2, 3, 1).cpu().numpy()


def from_bytes(pixels: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] as images [B, 3, H, W] in [-1, 1] float32."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
