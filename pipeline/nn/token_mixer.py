"""Transformer layers through which segments of a row of tokens see each other, as a mask says."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.draws import Draws
from pipeline.nn.blocks import SelfAttention, SwiGLUFeedForward
from pipeline.nn.convolution import Tower
from pipeline.nn.dropout import apply_dropout


class MixerShape(NamedTuple):
    """What the layers of one mixer have in common."""

    width: int
    depth: int
    heads: int
    hidden: int  # width inside the feed-forward layer
    dropout: float = 0.0  # of what attention adds
    head_width: int | None = None  # where it is not width / heads; queries, keys and values then have no bias


class MixerBlock(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x)), [B, N, width]."""

    def __init__(self, shape: MixerShape):
        super().__init__()
        self.rate = shape.dropout
        self.norm1 = nn.LayerNorm(shape.width)
        self.attention = SelfAttention(shape.width, shape.heads)
        if shape.head_width is not None:
            inner = shape.heads * shape.head_width
            self.attention.qkv = nn.Linear(shape.width, 3 * inner, bias=False)
            self.attention.proj = nn.Linear(inner, shape.width)
        self.norm2 = nn.LayerNorm(shape.width)
        self.feed_forward = SwiGLUFeedForward(shape.width, 1.0, shape.hidden)

    def forward(self, x: Tensor, mask: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """`mask` [N, N] bool says which tokens one sees, and `kept` [B, N, width] what dropout leaves."""
        x = x + apply_dropout(self.attention(self.norm1(x), mask=mask), kept, self.rate)
        return x + self.feed_forward(self.norm2(x))


class TokenMixer(Tower):
    """`MixerBlock`s in a row."""

    def __init__(self, shape: MixerShape):
        super().__init__()
        self.shape = shape
        self.blocks = nn.ModuleList(MixerBlock(shape) for _ in range(shape.depth))

    def forward(self, h: Tensor, mask: Tensor | None = None, draws: Draws | None = None, name: str = "mixer") -> Tensor:
        """h [B, N, width]; dropout's masks are drawn as `name.i`, and without draws nothing is dropped."""
        for i, block in enumerate(self.blocks):
            kept = None
            if draws is not None and self.shape.dropout:
                kept = draws.keep_mask(f"{name}.{i}", tuple(h.shape[1:]), self.shape.dropout)
            h = self.run(block, h, mask, kept)
        return h


def lower_triangle(tokens: int, device: torch.device, seeing: int = 0) -> Tensor:
    """Which tokens [N, N] bool one sees: itself and those before it; the last `seeing` see all."""
    places = torch.arange(tokens, device=device)
    return (places <= places[:, None]) | (places >= tokens - seeing)[:, None]
