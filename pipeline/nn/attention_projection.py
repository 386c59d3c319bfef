"""A projection of maps with attention between their positions, as in VFM-VAE's bottleneck."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.attention import attention

NORM_EPSILON = 1e-6  # of the feed-forward's own norm


class ProjectionAttention(nn.Module):
    """Tokens [B, N, inputs] to [B, N, outputs]: attention at the larger of the two widths, keys without a bias.

    There are as many heads as the smaller width goes into the larger. Where the width shrinks, the mean over heads is
    taken, and brought to `outputs` by means over neighbouring channels where a head is of another width.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        wide = max(inputs, outputs)
        self.shrinks, self.outputs = inputs > outputs, outputs
        self.heads = next(h for h in range(wide // min(inputs, outputs), 0, -1) if wide % h == 0)
        self.qkv = nn.Linear(inputs, 3 * wide, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(wide))
        self.value_bias = nn.Parameter(torch.zeros(wide))
        self.proj = nn.Linear(outputs, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        queries, keys, values = self.qkv(tokens).chunk(3, dim=-1)
        queries, values = queries + self.query_bias.to(queries), values + self.value_bias.to(values)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (queries, keys, values))
        mixed = attention(q, k, v)  # [B, heads, N, D]
        if not self.shrinks:
            return self.proj(mixed.transpose(1, 2).flatten(2))
        mixed = mixed.mean(dim=1)
        if mixed.shape[-1] != self.outputs:
            mixed = F.adaptive_avg_pool1d(mixed, self.outputs)
        return self.proj(mixed)


class GatedFeedForward(nn.Module):
    """down(gelu(gate(n)) up(n)) with n = norm(x), of twice the width; GELU in its tanh form."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.gate = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        return self.down(F.gelu(self.gate(normed), approximate="tanh") * self.up(normed))


class ProjectionBlock(nn.Module):
    """h = skip(norm3(x)) + attention(norm1(x)), then h + feed_forward(norm2(h)), [B, N, inputs] to [B, N, outputs]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(inputs), nn.LayerNorm(inputs)
        self.attention = ProjectionAttention(inputs, outputs)
        self.skip = nn.Linear(inputs, outputs)
        self.norm2 = nn.LayerNorm(outputs)
        self.feed_forward = GatedFeedForward(outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.skip(self.norm3(tokens)) + self.attention(self.norm1(tokens))
        return h + self.feed_forward(self.norm2(h))


class AttentionProjection(nn.Module):
    """Maps [B, inputs, h, w] to [B, outputs, h, w] by `layers` blocks, the first of which changes the width.

    VFM-VAE, arXiv:2510.18457, after the facts of its release.
    """

    def __init__(self, inputs: int, outputs: int, layers: int = 1):
        super().__init__()
        self.blocks = nn.ModuleList(ProjectionBlock(outputs if i else inputs, outputs) for i in range(layers))

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.flatten(2).mT
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.mT.unflatten(2, maps.shape[2:])
