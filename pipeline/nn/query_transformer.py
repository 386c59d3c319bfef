"""Transformers of queries that read a memory: from a map to a row of tokens, and from such a row to a map."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.convolution import Tower, match_memory_format
from pipeline.nn.cross_attention import CrossAttention
from pipeline.nn.embeddings import learned_vectors

Pooling = Literal["levels", "mean"]


class QueryBlock(nn.Module):
    """h + self-attention, then + attention to a memory, then + linear, exact GELU, linear, each after a layer norm.

    Positions are added to queries and keys and not to values, as in DETR (Carion et al., arXiv:2005.12872).
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention = CrossAttention(width, heads)
        self.reading = CrossAttention(width, heads)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, hidden_states: Tensor, memory: Tensor, positions: Tensor, memory_positions: Tensor) -> Tensor:
        """hidden_states [B, N, width] to the same; the memory [B, M, width] is read as it is, without a norm."""
        h = self.norm1(hidden_states)
        placed = h + positions
        h = hidden_states + self.attention(placed, placed, h)
        h = h + self.reading(self.norm2(h) + positions, memory + memory_positions, memory)
        return h + self.down(F.gelu(self.up(self.norm3(h))))


class QueryTrunk(Tower):
    """What both transformers have: an embedding of what they read, positions of places and of tokens, and blocks."""

    def __init__(self, inputs: int, places: int, tokens: int, width: int, depth: int, heads: int):
        super().__init__()
        self.norm_in = nn.LayerNorm(inputs)
        self.embedding = nn.Linear(inputs, width)
        self.place_positions = learned_vectors(places, width)
        self.token_positions = learned_vectors(tokens, width)
        self.blocks = nn.ModuleList(QueryBlock(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)

    def run_blocks(self, queries: Tensor, memory: Tensor, positions: Tensor, memory_positions: Tensor) -> Tensor:
        for block in self.blocks:
            queries = self.run(block, queries, memory, positions, memory_positions)
        return self.norm_out(queries)


class QueryEncoder(QueryTrunk):
    """Maps [B, inputs, h, w] to `tokens` tokens, and `copies` of the last of them, [B, tokens + copies, inputs].

    Queries are means over parts of the map after its embedding (`pool`), and a linear layer; a copy begins as the same
    query, with a position of its own. GigaTok (arXiv:2504.08736); copies are ReToK's (arXiv:2601.01535).
    """

    def __init__(self, inputs: int, places: int, tokens: int, copies: int, pooling: Pooling, *sizes: int):
        super().__init__(inputs, places, tokens + copies, *sizes)
        width = self.embedding.out_features
        self.tokens, self.copies, self.pooling = tokens, copies, pooling
        self.query = nn.Linear(width, width)
        self.projection = nn.Linear(width, inputs)

    def forward(self, maps: Tensor) -> Tensor:
        memory = self.embedding(self.norm_in(maps.flatten(2).mT))
        pooled = pool(memory.mT.unflatten(2, maps.shape[2:]), self.tokens, self.pooling)
        queries = self.query(torch.cat([pooled, pooled[:, self.tokens - self.copies :]], dim=1))
        return self.projection(self.run_blocks(queries, memory, self.token_positions, self.place_positions))


class QueryDecoder(QueryTrunk):
    """The first few tokens [B, n, inputs] to a map [B, inputs, h, w]; every place begins as the first token."""

    def __init__(self, inputs: int, grid: Sequence[int], tokens: int, *sizes: int):
        super().__init__(inputs, math.prod(grid), tokens, *sizes)
        self.grid = tuple(grid)
        self.conv_out = nn.Conv2d(self.embedding.out_features, inputs, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        memory = self.embedding(self.norm_in(tokens))
        queries = memory[:, :1].expand(-1, math.prod(self.grid), -1)
        h = self.run_blocks(queries, memory, self.place_positions, self.token_positions[: tokens.shape[1]])
        return self.conv_out(match_memory_format(h.mT.unflatten(2, self.grid), self.conv_out.weight))


def pool(maps: Tensor, tokens: int, pooling: Pooling = "levels") -> Tensor:
    """Means over parts of maps [B, C, h, w] as `tokens` rows [B, tokens, C].

    `levels`: the whole twice, then halves by a vertical cut, quarters, eighths, ... row by row, until there are enough;
    GigaTok's 256 are 1 + 1 + 2 + 4 + ... + 128. `mean`: the whole each time.
    """
    if pooling == "mean":
        return maps.mean(dim=(2, 3))[:, None].expand(-1, tokens, -1)
    parts = [F.adaptive_avg_pool2d(maps, sides).flatten(2) for sides in part_grids(tokens)]
    return torch.cat(parts, dim=2).mT[:, :tokens]


def part_grids(tokens: int) -> list[tuple[int, int]]:
    """Rows and columns of the parts of every level of `pool`, until all levels have `tokens` parts."""
    grids, count = [(1, 1)], 1
    while count < tokens:
        level = len(grids) - 1
        grids.append((2 ** (level // 2), 2 ** ((level + 1) // 2)))
        count += 2**level
    return grids


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """As published: truncated normal matrices and kernels, biases at zero; queries, keys and values by Xavier's law.

    It is that of one matrix for the three.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, CrossAttention):
            for each in (layer.query, layer.key, layer.value):
                nn.init.xavier_uniform_(each.weight, gain=2**-0.5)
