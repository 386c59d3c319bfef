"""Transformer blocks of next-scale prediction: a token attends to its own level and those before it."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn

from pipeline.draws import Draws
from pipeline.nn.blocks import AttentionProcessor, GELUFeedForward, modulate
from pipeline.nn.causal import Cache
from pipeline.nn.dropout import apply_dropout

SHARPEST = math.log(100)  # of the logarithm of what multiplies unit queries
PLAIN = 0.25  # times D^-0.5, the scale of attention without unit queries and keys in VAR


class LevelBlockShape(NamedTuple):
    """What the blocks of one network have in common."""

    width: int
    heads: int
    ratio: float  # hidden width of the feed-forward layer over the width
    epsilon: float  # of the norms
    query_key_norm: bool
    shared: bool  # whether all blocks share the layer that makes modulations


class BranchMasks(NamedTuple):
    """Which images' branches of one block stay, each [B, 1] bool; None keeps all."""

    attention: Tensor | None = None
    feed_forward: Tensor | None = None


class LevelAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention on [B, N, width] with biases of queries and values, and none of keys.

    With `query_key_norm` queries and keys have length one, and queries are multiplied by a learned number per head, at
    most 100. As in VAR (arXiv:2404.02905).
    """

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False  # one projection makes all three already

    def __init__(self, shape: LevelBlockShape):
        super().__init__()
        self.heads, self.normed = shape.heads, shape.query_key_norm
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(shape.width))
        self.value_bias = nn.Parameter(torch.zeros(shape.width))
        self.log_scales = nn.Parameter(torch.full((shape.heads,), math.log(4))) if self.normed else None
        self.proj = nn.Linear(shape.width, shape.width)
        self.set_processor(AttentionProcessor())

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """`mask` [N, N] bool is what each sees; with a cache, x are the tokens of the next level, which see all."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = (self.qkv(x) + bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each [B, heads, N, D]
        if self.normed:
            scales = self.log_scales.float().clamp(max=SHARPEST).exp()[:, None, None] * q.shape[-1] ** 0.5
            q, k = F.normalize(q.float(), dim=-1) * scales, F.normalize(k.float(), dim=-1)
        else:
            q = PLAIN * q
        q, k = q.to(v.dtype), k.to(v.dtype)
        if cache is not None:
            k, v = cache.append(k, v)
        mixed = self.processor(q, k, v, mask=mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class LevelBlock(nn.Module):
    """A pre-norm block whose norms and branches are shifted, scaled and gated by a condition.

    The condition [B, width] (after its SiLU) goes through a layer of the block; where that is `shared` by all blocks
    its output [B, 6 * width] comes in instead, and the block adds numbers of its own.
    """

    def __init__(self, shape: LevelBlockShape, drop_path: float):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.epsilon, elementwise_affine=False)
        self.attention = LevelAttention(shape)
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.epsilon, elementwise_affine=False)
        self.feed_forward = GELUFeedForward(shape.width, shape.ratio)
        self.modulation = None if shape.shared else nn.Linear(shape.width, 6 * shape.width)
        self.shifts = nn.Parameter(torch.zeros(6 * shape.width)) if shape.shared else None

    def masks(self, draws: Draws | None, name: str) -> BranchMasks:
        """Which images' branches stay in one step, drawn outside `forward`, which thus is a function of tensors."""
        if draws is None or not self.drop_path:
            return BranchMasks()
        return BranchMasks(*(draws.keep_mask(f"{name}.{part}", (1,), self.drop_path) for part in BranchMasks._fields))

    def forward(
        self,
        hidden_states: Tensor,
        condition: Tensor,
        mask: Tensor | None = None,
        masks: BranchMasks = BranchMasks(),
        cache: Cache | None = None,
    ) -> Tensor:
        """hidden_states [B, N, width] to the same."""
        modulations = condition + self.shifts if self.modulation is None else self.modulation(condition)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations[:, None].chunk(6, dim=-1)
        h = hidden_states
        branch = self.attention(modulate(self.norm1(h), shift1, scale1), mask, cache)
        h = torch.addcmul(h, gate1, self.drop(branch, masks.attention))
        branch = self.feed_forward(modulate(self.norm2(h), shift2, scale2))
        return torch.addcmul(h, gate2, self.drop(branch, masks.feed_forward))

    def drop(self, branch: Tensor, kept: Tensor | None) -> Tensor:
        return apply_dropout(branch, None if kept is None else kept[:, :, None], self.drop_path)
