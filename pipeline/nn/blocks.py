"""Transformer blocks: norms, feed-forward layers, adaptive modulation, attention, and the block made of them."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from pipeline.nn.attention import attention, dropped_attention
from pipeline.nn.embeddings import rotate

Norm = Literal["layer", "rms"]
FeedForward = Literal["gelu", "swiglu"]
QueryKeyNorm = bool | Literal["layer"]  # an RMS norm, or a layer norm with weights of its own
Rotary = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, bool]  # cosines and sines [N, head width], whether paired

EPSILON = 1e-6  # of every norm here, as in DiT, SiT and LightningDiT


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis, in x's type (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, width: int, epsilon: float = EPSILON):
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.epsilon).to(x.dtype)


def make_norm(kind: Norm, width: int, affine: bool = False) -> nn.Module:
    """`rms` has a learned scale; `layer` has weights of its own if `affine`, and none where a modulation follows."""
    return RMSNorm(width) if kind == "rms" else nn.LayerNorm(width, eps=EPSILON, elementwise_affine=affine)


def make_query_key_norm(kind: QueryKeyNorm, width: int) -> nn.Module:
    """The norm of queries and keys of one head; `layer` has torch's epsilon of 1e-5, as in LightningDiT."""
    if kind == "layer":
        return nn.LayerNorm(width)
    return RMSNorm(width) if kind else nn.Identity()


class GELUFeedForward(nn.Module):
    """Linear, tanh GELU, linear: [B, N, width] through `ratio` times the width, or through `hidden` channels."""

    def __init__(self, width: int, ratio: float, hidden: int | None = None, bias: bool = True):
        super().__init__()
        hidden = hidden or int(width * ratio)
        self.up = nn.Linear(width, hidden, bias)
        self.down = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class SwiGLUFeedForward(nn.Module):
    """silu(a) * b of one linear layer's two halves, then a linear layer (Shazeer, arXiv:2002.05202).

    Two thirds of `ratio` times the width, so that it costs what the GELU layer of the same ratio does, or `hidden`.
    """

    def __init__(self, width: int, ratio: float, hidden: int | None = None, bias: bool = True):
        super().__init__()
        hidden = hidden or int(2 / 3 * int(width * ratio))
        self.up = nn.Linear(width, 2 * hidden, bias)
        self.down = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


def make_feed_forward(
    kind: FeedForward, width: int, ratio: float, hidden: int | None = None, bias: bool = True
) -> nn.Module:
    return (SwiGLUFeedForward if kind == "swiglu" else GELUFeedForward)(width, ratio, hidden, bias)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift for x [B, N, width] and a shift and scale [B, 1 or N, width], in a single pass."""
    return torch.addcmul(shift, x, 1 + scale)


def per_token(modulation: Tensor) -> Tensor:
    """Modulations [B, C], one per image, as [B, 1, C]; those of every token [B, N, C] as they are."""
    return modulation[:, None] if modulation.ndim == 2 else modulation


class AttentionProcessor:
    """The kernel of an attention layer: `nn.attention`'s choice unless diffusers' `set_attention_backend` set one."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """q [B, heads, N, D], k and v [B, heads, M, D] to [B, heads, N, D]; `causal` where N = M.

        A `mask`, bool and broadcastable to [B, heads, N, M], is in place of `causal`.
        """
        if self._attention_backend is None:
            return attention(q, k, v, mask, causal)
        swapped = [t.transpose(1, 2) for t in (q, k, v)]  # diffusers dispatches on [B, N, heads, D]
        options = {"attn_mask": mask, "is_causal": causal, "backend": self._attention_backend}
        return dispatch_attention_fn(*swapped, **options).transpose(1, 2)


class SelfAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention on [B, N, width], with norms on queries and keys and optional rotary positions."""

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False  # one projection makes all three already

    def __init__(self, width: int, heads: int, query_key_norm: QueryKeyNorm = False, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.query_norm = make_query_key_norm(query_key_norm, width // heads)
        self.key_norm = make_query_key_norm(query_key_norm, width // heads)
        self.proj = nn.Linear(width, width, bias)
        self.set_processor(AttentionProcessor())

    def forward(
        self,
        x: Tensor,
        rotary: Rotary | None = None,
        kept: Tensor | None = None,
        rate: float = 0.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x [B, N, width]; with `kept` [B, heads, N, N] bool, attention weights that dropout of `rate` leaves.

        `mask` is bool, broadcastable to [B, heads, N, N], and says which keys a query sees.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, N, 3, heads, D]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, D]
        q, k = self.query_norm(q), self.key_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        dropped = kept is not None
        mixed = dropped_attention(q, k, v, kept, rate, mask=mask) if dropped else self.processor(q, k, v, mask=mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Attended(NamedTuple):
    """What the attention of blocks sees: which places of their own sequence, and the places of a caption across."""

    keys: Tensor | None = None  # bool, broadcastable to [B, heads, N, N]; None: all, or those before in causal blocks
    text: Tensor | None = None  # [B, T, width]
    text_keys: Tensor | None = None  # [B, 1, 1, T] bool


NOTHING = Attended()


class TextAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention from a sequence to the places of a caption, after a norm; it begins at zero.

    Between self-attention and feed-forward layer, as in PixArt (Chen et al., arXiv:2310.00426).
    """

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False  # one projection makes keys and values already

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.set_processor(AttentionProcessor())

    def forward(self, h: Tensor, attended: Attended, stored: dict[str, Tensor] | None = None) -> Tensor:
        """What is to be added to h [B, N, width]; `stored` keeps the caption's keys and values for later calls."""
        pairs = {} if stored is None else stored
        if not pairs:
            keys, values = self.key_value(attended.text).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
            pairs |= {"keys": keys, "values": values}  # [B, heads, T, D]
        q = self.query(self.norm(h)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = self.processor(q.to(pairs["keys"].dtype), pairs["keys"], pairs["values"], mask=attended.text_keys)
        return self.proj(mixed.transpose(1, 2).flatten(2))


def silence_captions(network: nn.Module) -> None:
    """Set what attention to captions adds to zero, as a training begins."""
    for module in network.modules():
        if isinstance(module, TextAttention):
            nn.init.zeros_(module.proj.weight), nn.init.zeros_(module.proj.bias)


class ModulatedBlock(nn.Module):
    """A transformer block whose norms and branches are shifted, scaled and gated by a condition (adaLN-Zero).

    Peebles and Xie, arXiv:2212.09748, section 3.2; with gates at zero it is the identity. A `crossed` block attends to
    captions after its self-attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        norm: Norm,
        feed_forward: FeedForward,
        ratio: float,
        query_key_norm: QueryKeyNorm,
        crossed: bool = False,
    ):
        super().__init__()
        self.norm1 = make_norm(norm, width)
        self.attention = SelfAttention(width, heads, query_key_norm)
        self.text_attention = TextAttention(width, heads) if crossed else None
        self.norm2 = make_norm(norm, width)
        self.feed_forward = make_feed_forward(feed_forward, width, ratio)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self, hidden_states: Tensor, condition: Tensor, rotary: Rotary | None = None, attended: Attended = NOTHING
    ) -> Tensor:
        """hidden_states [B, N, width] to the same; condition [B, width], or [B, N, width] by token, after its SiLU."""
        shift1, scale1, gate1, shift2, scale2, gate2 = per_token(self.modulation(condition)).chunk(6, dim=-1)
        h = hidden_states
        mixed = self.attention(modulate(self.norm1(h), shift1, scale1), rotary, mask=attended.keys)
        h = torch.addcmul(h, gate1, mixed)
        if self.text_attention is not None:
            h = h + self.text_attention(h, attended)
        return torch.addcmul(h, gate2, self.feed_forward(modulate(self.norm2(h), shift2, scale2)))


class ModulatedHead(nn.Module):
    """The last norm, shifted and scaled by the condition, and the linear layer to `channels`: [B, N, channels]."""

    def __init__(self, width: int, channels: int, norm: Norm):
        super().__init__()
        self.norm = make_norm(norm, width)
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, channels)

    def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
        return self.linear(self.modulate_norm(hidden_states, condition))

    def modulate_norm(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
        """The linear layer's input, [B, N, width]."""
        shift, scale = per_token(self.modulation(condition)).chunk(2, dim=-1)
        return modulate(self.norm(hidden_states), shift, scale)
