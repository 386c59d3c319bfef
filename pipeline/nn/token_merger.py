"""Tokens that are kept read those before them that are kept, and what is not: with masks that gradients pass."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.convolution import Tower
from pipeline.nn.full_precision import full_precision

SMALLEST = 1e-6  # added to all weights of a query together, so that there are some where every key is masked


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [B, heads, N, D], k and v [B, heads, M, D] and a mask [B, 1, N, M] of 0 and 1 to [B, heads, N, D].

    Weights are (e + epsilon / M) / (sum of e + epsilon), e = exp(score - largest score) mask, so that the mask has a
    gradient where it is 0, too; with every key masked they are 1 / M. DynamicViT (Rao et al., arXiv:2106.02034).
    """
    with full_precision(q):
        scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().mT
        weights = (scores - scores.amax(dim=-1, keepdim=True)).exp() * mask
        weights = (weights + SMALLEST / k.shape[2]) / (weights.sum(dim=-1, keepdim=True) + SMALLEST)
    return weights.to(v.dtype) @ v


class MaskedAttention(nn.Module):
    """Attention of x [B, N, width] to a memory [B, M, width] by a mask of 0 and 1 that passes gradients."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """`mask` is broadcastable to [B, heads, N, M]."""
        projected = self.query(x), self.key(memory), self.value(memory)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projected)
        return self.proj(masked_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class MergerBlock(nn.Module):
    """Attention to kept tokens before and to itself, attention to what was dropped, and linear, exact GELU, linear."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = MaskedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.reading = MaskedAttention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, hidden_states: Tensor, features: Tensor, seen: Tensor, dropped: Tensor) -> Tensor:
        """hidden_states and features [B, N, width], masks `seen` [B, 1, N, N] and `dropped` [B, 1, 1, N]."""
        normed = self.norm1(hidden_states)
        h = hidden_states + self.attention(normed, normed, seen)
        h = h + self.reading(self.norm2(h), features, dropped)
        return h + self.down(F.gelu(self.up(self.norm3(h))))


class TokenMerger(Tower):
    """Features [B, N, width] and decisions [B, N] of 0 and 1 to merged tokens [B, N, width], to be read where kept.

    A token sees itself and those kept before it, and the features of those that are not kept, which so are merged into
    the others. The merger of LaVIT (Jin et al., arXiv:2309.04669).
    """

    def __init__(self, width: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(MergerBlock(width, heads, hidden) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, features: Tensor, kept: Tensor) -> Tensor:
        own = torch.eye(kept.shape[1], device=kept.device, dtype=kept.dtype)
        seen = (kept[:, None] * (1 - own) + own).tril()[:, None]
        dropped = (1 - kept)[:, None, None]
        h = features
        memory = self.norm_in(features)
        for block in self.blocks:
            h = self.run(block, h, memory, seen, dropped)
        return self.norm_out(h)
