"""From a transformer's states to pixels: heads that decode each state to a patch."""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.nn.embeddings import unpatchify
from pipeline.nn.image_size import divide

Grid = tuple[int, int]  # rows and columns of patches
Head = Literal["linear", "conv", "pixel_shuffle", "transposed"]


def patch_grid(image_size: int | Sequence[int], pixel_patch: int) -> Grid:
    """Of the patches of images of a size; ValueError where they do not divide its sides."""
    return divide(image_size, pixel_patch, f"pixel_patch {pixel_patch}; change one")


class LinearHead(nn.Module):
    """States [B, N, width], row by row on `grid` (a square when None), to images [B, channels, h p, w p] of p-pixel
    patches.

    A linear layer, whose outputs are row in the patch, column, channel.
    """

    def __init__(self, width: int, patch_size: int, channels: int = 3):
        super().__init__()
        self.patch_size = patch_size
        self.patches = nn.Linear(width, channels * patch_size**2)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.patches.weight

    def forward(self, h: Tensor, grid: Grid | None = None) -> Tensor:
        return assemble_patches(self.patches(h), self.patch_size, grid)


class ConvHead(LinearHead):
    """As `LinearHead`, and a 3x3 convolution of the pixels after it, which sees across the borders of patches."""

    def __init__(self, width: int, patch_size: int, channels: int = 3):
        super().__init__(width, patch_size, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.conv_out.weight

    def forward(self, h: Tensor, grid: Grid | None = None) -> Tensor:
        return self.conv_out(super().forward(h, grid))


class PixelShuffleHead(nn.Module):
    """As `LinearHead`, of a 1x1 convolution whose outputs are channel, row in the patch, column."""

    def __init__(self, width: int, patch_size: int, channels: int = 3):
        super().__init__()
        self.patch_size = patch_size
        self.conv = nn.Conv2d(width, channels * patch_size**2, 1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.conv.weight

    def forward(self, h: Tensor, grid: Grid | None = None) -> Tensor:
        return F.pixel_shuffle(self.conv(tokens_to_map(h, grid)), self.patch_size)


class TransposedHead(nn.Module):
    """As `LinearHead`, of a transposed convolution whose stride is its kernel: a bias per channel, not per pixel."""

    def __init__(self, width: int, patch_size: int, channels: int = 3):
        super().__init__()
        self.conv = nn.ConvTranspose2d(width, channels, patch_size, stride=patch_size)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.conv.weight

    def forward(self, h: Tensor, grid: Grid | None = None) -> Tensor:
        return self.conv(tokens_to_map(h, grid))


def make_head(kind: Head, width: int, patch_size: int, channels: int = 3) -> nn.Module:
    """`linear`; `conv`, RecTok's; `pixel_shuffle`, VTP's; `transposed`, ViTok's."""
    heads = {"linear": LinearHead, "conv": ConvHead, "pixel_shuffle": PixelShuffleHead, "transposed": TransposedHead}
    return heads[kind](width, patch_size, channels)


def assemble_patches(patches: Tensor, patch_size: int, grid: Grid | None = None) -> Tensor:
    """Patches [B, N, p p C], row by row on `grid` and inside, as images [B, C, h p, w p]; a square when None."""
    rows, columns = grid or square_grid(patches)
    size = (rows * patch_size, columns * patch_size)
    return unpatchify(patches, size, patch_size).transpose(1, 2).unflatten(2, size)


def tokens_to_map(h: Tensor, grid: Grid | None = None) -> Tensor:
    """States [B, N, C], row by row on `grid` (a square when None), as maps [B, C, h, w]."""
    return h.transpose(1, 2).unflatten(2, grid or square_grid(h))


def square_grid(h: Tensor) -> Grid:
    """The sides of the square that N tokens [B, N, C] fill."""
    return (math.isqrt(h.shape[1]),) * 2
