"""Transformers between a clip and tokens that each read all of it: patches and queries in one sequence, and back."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.nn.clip_patches import put_patches, take_patches
from pipeline.nn.convolution import Tower
from pipeline.nn.embeddings import fixed_positions, register_table
from pipeline.nn.vision_transformer import PreNormBlock

STANDARD_DEVIATION = 0.02  # of queries and matrices as a training begins


class ClipPatches:
    """How a clip is cut into patches: `grid` of frames, rows and columns of patches, each of `patch` of them."""

    def __init__(self, grid: Sequence[int], patch: Sequence[int], channels: int):
        self.grid, self.frames, self.side, self.channels = tuple(grid), patch[0], patch[1], channels
        self.count, self.values = math.prod(grid), channels * patch[0] * patch[1] ** 2

    def take(self, clip: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, count, values]."""
        return take_patches(clip, self.side, self.frames).flatten(1, 3)

    def put(self, patches: Tensor) -> Tensor:
        """The inverse of `take`."""
        return put_patches(patches.unflatten(1, self.grid), self.side, self.frames)

    def positions(self, width: int) -> Tensor:
        """[count, width]: sine-cosine positions of row and column, to which those of the frame are added."""
        within, frame = fixed_positions(self.grid[1:], width), fixed_positions(self.grid[:1], width)
        return (frame[:, None] + within).flatten(0, 1)


class ClipEncoder(Tower):
    """Clips [B, C, T, H, W] to the states of `tokens` learned queries beside the patches, [B, tokens, outputs].

    There is no norm after the last block.
    """

    def __init__(self, patches: ClipPatches, tokens: int, size: tuple[int, int, int], outputs: int):
        super().__init__()
        (width, depth, heads), self.patches = size, patches
        self.patch_embedding = nn.Linear(patches.values, width)
        register_table(self, "positions", patches.positions(width))
        self.queries = nn.Parameter(STANDARD_DEVIATION * torch.randn(tokens, width))
        self.blocks = nn.ModuleList(PreNormBlock(width, heads, qkv_bias=False) for _ in range(depth))
        self.projection = nn.Linear(width, outputs)
        initialise(self)

    def forward(self, clip: Tensor) -> Tensor:
        places = self.patch_embedding(self.patches.take(clip))
        h = torch.cat([places + self.positions.to(places), self.queries.to(places).expand(len(clip), -1, -1)], dim=1)
        for block in self.blocks:
            h = self.run(block, h)
        return self.projection(h[:, places.shape[1] :])


class ClipDecoder(Tower):
    """Tokens [B, tokens, inputs] to clips [B, C, T, H, W], read by one fixed query a patch.

    With `typed` the queries have a learned vector in common that sets them apart from the tokens.
    """

    def __init__(self, patches: ClipPatches, tokens: int, size: tuple[int, int, int], inputs: int, typed: bool):
        super().__init__()
        (width, depth, heads), self.patches = size, patches
        self.embedding = nn.Linear(inputs, width)
        register_table(self, "positions", fixed_positions((tokens,), width))
        register_table(self, "queries", patches.positions(width))
        self.query_type = nn.Parameter(STANDARD_DEVIATION * torch.randn(width)) if typed else None
        self.blocks = nn.ModuleList(PreNormBlock(width, heads, qkv_bias=False) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, patches.values)
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        tokens = self.embedding(z)
        queries = self.queries.to(tokens) if self.query_type is None else self.queries.to(tokens) + self.query_type
        h = torch.cat([tokens + self.positions.to(tokens), queries.to(tokens).expand(len(z), -1, -1)], dim=1)
        for block in self.blocks:
            h = self.run(block, h)
        return self.patches.put(self.pixels(self.norm_out(h[:, tokens.shape[1] :])))


def initialise(module: nn.Module) -> None:
    """Matrices of a truncated normal law, biases at zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=STANDARD_DEVIATION)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
