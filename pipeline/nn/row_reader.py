"""Learned queries that read a row of tokens, of which there may be any number up to a largest."""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.blocks import SelfAttention
from pipeline.nn.convolution import Tower
from pipeline.nn.cross_attention import CrossAttention
from pipeline.nn.embeddings import learned_vectors


class ReaderBlock(nn.Module):
    """Self-attention, attention to the row, and linear, exact GELU, linear, with norms before each."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.reading = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, hidden_states: Tensor, memory: Tensor, keys: Tensor) -> Tensor:
        h = hidden_states + self.attention(self.norm1(hidden_states))
        h = h + self.reading(self.norm2(h), memory, memory, keys[:, None, None])
        return h + self.down(F.gelu(self.up(self.norm3(h))))


class RowReader(Tower):
    """A row [B, N, inputs], whose tokens are where `keys` [B, N] bool says, to `count` places, [B, count, outputs].

    Tokens have a learned position by their number in the row. The decoder of LaVIT (Jin et al., arXiv:2309.04669).
    """

    def __init__(
        self, count: int, tokens: int, inputs: int, width: int, depth: int, heads: int, hidden: int, outputs: int
    ):
        super().__init__()
        self.embedding = nn.Linear(inputs, width)
        self.positions = learned_vectors(tokens, width)
        self.queries = learned_vectors(count, width)
        self.blocks = nn.ModuleList(ReaderBlock(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))

    def forward(self, row: Tensor, keys: Tensor) -> Tensor:
        memory = self.embedding(row) + self.positions[: row.shape[1]]
        h = self.queries.to(memory.dtype).expand(len(row), -1, -1)
        for block in self.blocks:
            h = self.run(block, h, memory, keys)
        return self.projection(self.norm(h))
