"""Causal transformer blocks: each position attends to those before it, in one pass, or one by one with a cache."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn

from pipeline.draws import Draws
from pipeline.nn.attention import dropped_attention
from pipeline.nn.blocks import NOTHING, Attended, AttentionProcessor, Norm, RMSNorm, Rotary, TextAttention, modulate
from pipeline.nn.dropout import apply_dropout
from pipeline.nn.embeddings import rotate

FeedForward = Literal["swiglu", "gelu"]


class BlockShape(NamedTuple):
    """What the blocks of one network have in common."""

    width: int
    heads: int
    norm: Norm
    epsilon: float  # of every norm
    feed_forward: FeedForward
    hidden: int  # width inside the feed-forward layer
    bias: bool  # of every linear layer
    query_key_norm: bool
    residual_dropout: float  # of what attention and feed-forward layer add to the stream
    feed_forward_dropout: float  # of the activations inside the feed-forward layer
    attention_dropout: float  # of the attention weights
    crossed: bool = False  # whether blocks attend to captions


class Masks(NamedTuple):
    """Dropout's masks of one block, bool tensors; None keeps all."""

    attention: Tensor | None = None  # [B, S, width]
    hidden: Tensor | None = None  # [B, S, hidden]
    feed_forward: Tensor | None = None  # [B, S, width]
    weights: Tensor | None = None  # [B, heads, S, S]


EVERYTHING = Masks()


class Cache:
    """Keys and values of one layer: allocated once, of a fixed size, and read as views of the part that is filled."""

    def __init__(self, capacity: int):
        self.capacity, self.length = capacity, 0
        self.keys: Tensor | None = None  # [rows, heads, capacity, D]
        self.values: Tensor | None = None
        self.text: dict[str, Tensor] = {}  # keys and values of captions that the layer attends to, which stay the same

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values [rows, heads, n, D] of the next n positions; views [rows, heads, length, D] of all."""
        if self.keys is None:
            rows, heads, _, width = keys.shape
            room = [t.new_empty(rows, heads, self.capacity, width) for t in (keys, values)]
            self.keys, self.values = (t.zero_() for t in room)  # written to, so that memory is claimed here and now
        first, self.length = self.length, self.length + keys.shape[2]
        self.keys[:, :, first : self.length] = keys
        self.values[:, :, first : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def narrow(self, rows: int) -> None:
        """Keep the first `rows` of the batch."""
        self.keys, self.values = self.keys[:rows], self.values[:rows]
        self.text = {name: tensor[:rows] for name, tensor in self.text.items()}


def learned_norm(kind: Norm, width: int, epsilon: float) -> nn.Module:
    """A norm with weights of its own; LayerNorm with a bias too."""
    return RMSNorm(width, epsilon) if kind == "rms" else nn.LayerNorm(width, eps=epsilon)


def hidden_width(width: int, feed_forward: FeedForward, ratio: float, multiple: int) -> int:
    """Channels inside the feed-forward layer; SwiGLU takes two thirds of `ratio`, since it has three matrices."""
    hidden = int(ratio * width)
    hidden = int(2 * hidden / 3) if feed_forward == "swiglu" else hidden
    return multiple * math.ceil(hidden / multiple)


class CausalAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention on [B, N, width] in which a position attends to itself and those before it."""

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False  # one projection makes all three already

    def __init__(self, shape: BlockShape):
        super().__init__()
        self.heads, self.normed, head_width = shape.heads, shape.query_key_norm, shape.width // shape.heads
        self.dropout = shape.attention_dropout
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=shape.bias)
        self.query_norm = learned_norm(shape.norm, head_width, shape.epsilon) if self.normed else None
        self.key_norm = learned_norm(shape.norm, head_width, shape.epsilon) if self.normed else None
        self.proj = nn.Linear(shape.width, shape.width, bias=shape.bias)
        self.set_processor(AttentionProcessor())

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        cache: Cache | None = None,
        kept: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """With a cache, x are the next positions after those in it: one, or any number while it is empty.

        `kept` says which weights dropout leaves, and `mask`, see `Attended.keys`, what is seen in place of all earlier
        positions.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each [B, heads, N, D]
        if self.normed:
            q, k = self.query_norm(q), self.key_norm(k)
        if rotary is not None:
            q, k = self.turn(torch.stack([q, k]) if self.normed else qkv[:2], rotary)  # both at once
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast a norm's output is float32
        if cache is not None:
            k, v = cache.append(k, v)
        if kept is None:
            mixed = self.processor(q, k, v, causal=mask is None and q.shape[2] > 1, mask=mask)
        else:
            mixed = dropped_attention(q, k, v, kept, self.dropout, causal=mask is None, mask=mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def turn(self, pairs: Tensor, rotary: Rotary) -> Tensor:
        """Queries and keys [2, B, heads, N, D] at their positions."""
        return rotate(pairs, *rotary)


class CausalFeedForward(nn.Module):
    """Linear, activation, linear: silu(a) * b of the first layer's two halves (Shazeer, arXiv:2002.05202), or GELU."""

    def __init__(self, shape: BlockShape):
        super().__init__()
        self.gated, self.dropout = shape.feed_forward == "swiglu", shape.feed_forward_dropout
        self.up = nn.Linear(shape.width, shape.hidden * (1 + self.gated), bias=shape.bias)
        self.down = nn.Linear(shape.hidden, shape.width, bias=shape.bias)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        h = self.up(x)
        if self.gated:
            gate, value = h.chunk(2, dim=-1)
            h = F.silu(gate) * value
        else:
            h = F.gelu(h)
        return self.down(apply_dropout(h, kept, self.dropout))


class CausalBlock(nn.Module):
    """A pre-norm block: h + attention(norm(h)), then h + feed_forward(norm(h)), as in Llama (arXiv:2302.13971)."""

    def __init__(self, shape: BlockShape):
        super().__init__()
        self.shape = shape
        self.norm1 = learned_norm(shape.norm, shape.width, shape.epsilon)
        self.attention = CausalAttention(shape)
        self.text_attention = TextAttention(shape.width, shape.heads) if shape.crossed else None
        self.norm2 = learned_norm(shape.norm, shape.width, shape.epsilon)
        self.feed_forward = CausalFeedForward(shape)

    def masks(self, draws: Draws | None, tokens: int, name: str) -> Masks:
        """This block's dropout masks in one step, drawn outside `forward`, which thus is a function of tensors."""
        if draws is None:
            return EVERYTHING
        width, residual, inner = self.shape.width, self.shape.residual_dropout, self.shape.feed_forward_dropout
        heads, rate = self.shape.heads, self.shape.attention_dropout
        return Masks(
            draws.keep_mask(f"{name}.attention", (tokens, width), residual) if residual else None,
            draws.keep_mask(f"{name}.hidden", (tokens, self.shape.hidden), inner) if inner else None,
            draws.keep_mask(f"{name}.feed_forward", (tokens, width), residual) if residual else None,
            draws.keep_mask(f"{name}.weights", (heads, tokens, tokens), rate) if rate else None,
        )

    def forward(
        self,
        hidden_states: Tensor,
        rotary: Rotary | None = None,
        masks: Masks = EVERYTHING,
        cache: Cache | None = None,
        attended: Attended = NOTHING,
    ) -> Tensor:
        """hidden_states [B, N, width] to the same shape."""
        h, rate = hidden_states, self.shape.residual_dropout
        branch = self.attention(self.norm1(h), rotary, cache, masks.weights, attended.keys)
        h = self.attend_caption(h + apply_dropout(branch, masks.attention, rate), attended, cache)
        return h + apply_dropout(self.feed_forward(self.norm2(h), masks.hidden), masks.feed_forward, rate)

    def attend_caption(self, h: Tensor, attended: Attended, cache: Cache | None) -> Tensor:
        """h [B, N, width] with what it attends to of captions, whose keys and values a cache keeps."""
        if self.text_attention is None:
            return h
        return h + self.text_attention(h, attended, None if cache is None else cache.text)


class PostNormCausalBlock(CausalBlock):
    """The block with its norms after the residual sums: norm(h + attention(h)), then norm(h + feed_forward(h)).

    As the first transformers had them (Vaswani et al., arXiv:1706.03762).
    """

    def forward(
        self,
        hidden_states: Tensor,
        rotary: Rotary | None = None,
        masks: Masks = EVERYTHING,
        cache: Cache | None = None,
        attended: Attended = NOTHING,
    ) -> Tensor:
        h, rate = hidden_states, self.shape.residual_dropout
        branch = self.attention(h, rotary, cache, masks.weights, attended.keys)
        h = self.norm1(h + apply_dropout(branch, masks.attention, rate))
        h = self.attend_caption(h, attended, cache)
        return self.norm2(h + apply_dropout(self.feed_forward(h, masks.hidden), masks.feed_forward, rate))


class ModulatedCausalBlock(CausalBlock):
    """The block with its norms and branches shifted, scaled and gated by a condition (adaLN-Zero) per position.

    As in RAR (arXiv:2411.00776); with gates at zero it is the identity.
    """

    def __init__(self, shape: BlockShape):
        super().__init__(shape)
        self.modulation = nn.Linear(shape.width, 6 * shape.width)

    def forward(
        self,
        hidden_states: Tensor,
        condition: Tensor,
        rotary: Rotary | None = None,
        masks: Masks = EVERYTHING,
        cache: Cache | None = None,
        attended: Attended = NOTHING,
    ) -> Tensor:
        """hidden_states and condition (after its SiLU) [B, N, width] to [B, N, width]."""
        h, rate = hidden_states, self.shape.residual_dropout
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        branch = self.attention(modulate(self.norm1(h), shift1, scale1), rotary, cache, masks.weights, attended.keys)
        h = torch.addcmul(h, gate1, apply_dropout(branch, masks.attention, rate))
        h = self.attend_caption(h, attended, cache)
        branch = self.feed_forward(modulate(self.norm2(h), shift2, scale2), masks.hidden)
        return torch.addcmul(h, gate2, apply_dropout(branch, masks.feed_forward, rate))


class ModulatedNorm(nn.Module):
    """A norm that is shifted and scaled by a condition [B, N, width] (after its SiLU)."""

    def __init__(self, kind: Norm, width: int, epsilon: float):
        super().__init__()
        layer = nn.LayerNorm(width, eps=epsilon, elementwise_affine=False)
        self.norm = RMSNorm(width, epsilon) if kind == "rms" else layer
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return modulate(self.norm(hidden_states), shift, scale)
