"""Clips as patches of a few pixels and frames, and back."""

from torch import Tensor


def take_patches(frames: Tensor, patch: int, depth: int = 1) -> Tensor:
    """Frames [B, C, T, H, W] as patches [B, T', h, w, values], whose values are channel, frame, row, column."""
    _, _, time, height, width = frames.shape
    split = frames.unflatten(4, (width // patch, patch)).unflatten(3, (height // patch, patch))
    split = split.unflatten(2, (time // depth, depth))  # [B, C, T', depth, h, p, w, p]
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def put_patches(patches: Tensor, patch: int, depth: int = 1) -> Tensor:
    """The inverse of `take_patches`."""
    split = patches.unflatten(4, (-1, depth, patch, patch)).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return split.flatten(6).flatten(4, 5).flatten(2, 3)
