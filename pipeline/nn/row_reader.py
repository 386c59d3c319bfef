"""Learned queries that read a row of tokens, of which there may be any number up to a largest."""

import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn

from pipeline.nn.blocks import AttentionProcessor, SelfAttention
from pipeline.nn.convolution import Tower
from pipeline.nn.embeddings import learned_vectors


class CrossAttention(nn.Module, AttentionModuleMixin):
    """Attention of x [B, N, width] to the places of a memory [B, M, width] that `keys` [B, M] bool has."""

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False  # queries are of another sequence than keys and values

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.set_processor(AttentionProcessor())

    def forward(self, x: Tensor, memory: Tensor, keys: Tensor) -> Tensor:
        projected = self.query(x), self.key(memory), self.value(memory)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projected)
        mixed = self.processor(q, k, v, mask=keys[:, None, None])
        return self.proj(mixed.transpose(1, 2).flatten(2))


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
        h = h + self.reading(self.norm2(h), memory, keys)
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
