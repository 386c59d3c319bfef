"""Holistic tokens before an image's patches: made of a foundation model's features, and read by a causal decoder."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.draws import Draws
from pipeline.nn.embeddings import learned_vectors
from pipeline.nn.image_size import Sides
from pipeline.nn.token_mixer import MixerShape, TokenMixer, lower_triangle

EXTRA = 0.1  # of a position, in the scale by which positions are resampled, as in DINO's code
EPSILON = 1e-6  # of the cosine between features


class FoundationShape(NamedTuple):
    """Of the features of a foundation model that a decoder rebuilds."""

    channels: int
    grid: Sides


class HolisticEncoder(nn.Module):
    """Patches [B, P, width] and features [B, M, channels] to [holistic tokens | patches], [B, tokens + P, width].

    Hita (Zheng et al., arXiv:2507.02358): the mixer `fusion` lets learned carriers, features and patches see each
    other; without the features, `order` is causal, holistic tokens first.
    """

    def __init__(self, tokens: int, patches: int, channels: int, fusion: MixerShape, order: MixerShape):
        super().__init__()
        width = fusion.width
        self.projection = nn.Sequential(
            nn.Linear(channels, width, bias=False),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Linear(width, width, bias=False),
            nn.LayerNorm(width),
        )
        self.carriers = learned_vectors(tokens, width)
        self.positions = learned_vectors(patches, width)
        self.norm1 = nn.LayerNorm(width)
        self.fusion = TokenMixer(fusion)
        self.norm2 = nn.LayerNorm(width)
        self.order = TokenMixer(order)

    def forward(self, patches: Tensor, features: Tensor, draws: Draws | None = None) -> Tensor:
        tokens, given = len(self.carriers), self.projection(features.to(patches.dtype))
        h = [self.carriers.expand(len(patches), -1, -1), given, patches + self.positions]
        h = self.fusion(self.norm1(torch.cat(h, dim=1)), draws=draws, name="fusion")
        h = self.norm2(torch.cat([h[:, :tokens], h[:, tokens + given.shape[1] :]], dim=1))
        return self.order(h, lower_triangle(h.shape[1], h.device), draws, "order")


class HolisticDecoder(nn.Module):
    """Holistic tokens [B, tokens, width] and patches [B, P, width] to a map's tokens [B, P, width].

    The mixer is causal, and the map is read `shift` places early: it begins with the last holistic tokens, and what
    the last patches become is left out. With `foundation`, `rebuild` makes the foundation model's features of the
    holistic tokens alone, through the same layers.
    """

    def __init__(
        self, tokens: int, grid: Sides, shift: int, shape: MixerShape, foundation: FoundationShape | None = None
    ):
        super().__init__()
        self.tokens, self.grid, self.shift, self.foundation = tokens, grid, shift, foundation
        self.holistic_positions = learned_vectors(tokens, shape.width)
        self.positions = learned_vectors(math.prod(grid), shape.width)
        self.norm = nn.LayerNorm(shape.width)
        self.mixer = TokenMixer(shape)
        if foundation is not None:
            self.mask_token = learned_vectors(1, shape.width)
            self.foundation_norm = nn.LayerNorm(shape.width)
            self.projection = nn.Linear(shape.width, foundation.channels)

    def forward(self, holistic: Tensor, patches: Tensor, draws: Draws | None = None) -> Tensor:
        h = torch.cat([holistic + self.holistic_positions, patches + self.positions], dim=1)
        h = self.mixer(self.norm(h), lower_triangle(h.shape[1], h.device), draws, "render")
        first = self.tokens - self.shift
        return h[:, first : first + patches.shape[1]]

    def rebuild(self, holistic: Tensor, draws: Draws | None = None) -> Tensor:
        """The foundation model's features [B, M, channels]; masks see all, holistic tokens only those before them."""
        positions = resample_by_scale(self.positions, self.grid, self.foundation.grid)
        masks = (self.mask_token + positions).expand(len(holistic), -1, -1)
        h = self.foundation_norm(torch.cat([holistic, masks], dim=1))
        seen = lower_triangle(h.shape[1], h.device, seeing=masks.shape[1])
        return self.projection(self.mixer(h, seen, draws, "rebuild")[:, self.tokens :])


def resample_by_scale(table: Tensor, grid: Sides, new_grid: Sides) -> Tensor:
    """Positions [N, C] of a grid as those [M, C] of another, bicubic, by a scale that is a little too large.

    As DINO's public code brings its positions to other images: (n + 0.1) / N is passed as the scale itself.
    """
    scale = [(new + EXTRA) / old for new, old in zip(new_grid, grid)]
    maps = table.T.unflatten(1, grid)[None]  # [1, C, H, W]
    return F.interpolate(maps, scale_factor=scale, mode="bicubic")[0].flatten(1).T
