"""The bilinear resize of TensorFlow 1, which the classical Inception features see their images through."""

import torch
from torch import Tensor


def resize_tensorflow1(images: Tensor, height: int, width: int) -> Tensor:
    """images [B, C, H, W] to [B, C, height, width] in float32: source = destination * (in / out), without the shift of
    half a pixel and without antialiasing; neighbours beyond the border are those at it."""
    low, high, share = _neighbours(images.shape[2], height, images.device)
    rows = torch.lerp(images.float()[:, :, low], images.float()[:, :, high], share[:, None])
    low, high, share = _neighbours(images.shape[3], width, images.device)
    return torch.lerp(rows[..., low], rows[..., high], share)


def _neighbours(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the two source pixels of each destination pixel, and the share of the second."""
    source = torch.arange(after, dtype=torch.float32, device=device) * (before / after)
    low = source.floor().long()
    return low, (low + 1).clamp(max=before - 1), source - low
