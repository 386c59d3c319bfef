"""Transformer blocks with attention between all tokens: BERT's, normed after each branch, and U-ViT's, before."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn

from pipeline.draws import Draws
from pipeline.nn.attention import dropped_attention
from pipeline.nn.blocks import NOTHING, Attended, AttentionProcessor, TextAttention
from pipeline.nn.dropout import apply_dropout


class BlockShape(NamedTuple):
    """What the blocks of one network have in common."""

    width: int
    heads: int
    hidden: int  # width inside the feed-forward layer
    dropout: float  # of what attention and feed-forward layer add to the stream
    attention_dropout: float  # of the attention weights
    hidden_dropout: float = 0.0  # between the linear layers of the feed-forward layer
    crossed: bool = False  # whether blocks attend to captions


class Masks(NamedTuple):
    """Dropout's masks of one block, bool tensors; None keeps all."""

    weights: Tensor | None = None  # [B, heads, N, N]
    attention: Tensor | None = None  # [B, N, width]
    feed_forward: Tensor | None = None  # [B, N, width]
    hidden: Tensor | None = None  # [B, N, hidden]


EVERYTHING = Masks()


class DroppingAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention on [B, N, width] whose weights can be dropped."""

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False  # one projection makes all three already

    def __init__(self, shape: BlockShape, bias: bool):
        super().__init__()
        self.heads, self.dropout = shape.heads, shape.attention_dropout
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=bias)
        self.proj = nn.Linear(shape.width, shape.width)
        self.set_processor(AttentionProcessor())

    def forward(self, x: Tensor, kept: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`kept` says which weights dropout leaves, and `mask` what is seen, see `Attended.keys`."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, N, 3, heads, D]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, D]
        if kept is None:
            mixed = self.processor(q, k, v, mask=mask)
        else:
            mixed = dropped_attention(q, k, v, kept, self.dropout, mask=mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, exact GELU, linear; between the two there may be dropout."""

    def __init__(self, shape: BlockShape):
        super().__init__()
        self.dropout = shape.hidden_dropout
        self.up = nn.Linear(shape.width, shape.hidden)
        self.down = nn.Linear(shape.hidden, shape.width)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        return self.down(apply_dropout(F.gelu(self.up(x)), kept, self.dropout))


class BidirectionalBlock(nn.Module):
    """What both kinds of block have: attention, feed-forward layer, two norms, and the masks of their dropout."""

    def __init__(self, shape: BlockShape, epsilon: float, bias: bool):
        super().__init__()
        self.shape = shape
        self.norm1 = nn.LayerNorm(shape.width, eps=epsilon)
        self.attention = DroppingAttention(shape, bias)
        self.text_attention = TextAttention(shape.width, shape.heads) if shape.crossed else None
        self.norm2 = nn.LayerNorm(shape.width, eps=epsilon)
        self.feed_forward = FeedForward(shape)

    def masks(self, draws: Draws | None, tokens: int, name: str) -> Masks:
        """This block's dropout masks in one step, drawn outside `forward`, which thus is a function of tensors."""
        if draws is None:
            return EVERYTHING
        width, heads, hidden, rate, weights_rate, hidden_rate, _ = self.shape
        return Masks(
            draws.keep_mask(f"{name}.weights", (heads, tokens, tokens), weights_rate) if weights_rate else None,
            draws.keep_mask(f"{name}.attention", (tokens, width), rate) if rate else None,
            draws.keep_mask(f"{name}.feed_forward", (tokens, width), rate) if rate else None,
            draws.keep_mask(f"{name}.hidden", (tokens, hidden), hidden_rate) if hidden_rate else None,
        )

    def attend_caption(self, h: Tensor, attended: Attended) -> Tensor:
        """h [B, N, width] with what it attends to of captions."""
        return h if self.text_attention is None else h + self.text_attention(h, attended)


class PostNormBlock(BidirectionalBlock):
    """norm(h + attention(h)), then norm(h + feed_forward(h)): BERT (Devlin et al., arXiv:1810.04805)."""

    def __init__(self, shape: BlockShape):
        super().__init__(shape, epsilon=1e-12, bias=True)

    def forward(
        self,
        hidden_states: Tensor,
        stored: Tensor | None = None,
        masks: Masks = EVERYTHING,
        attended: Attended = NOTHING,
    ) -> Tensor:
        """hidden_states [B, N, width] to the same shape; it takes nothing that an earlier block stored."""
        h, rate = hidden_states, self.shape.dropout
        h = self.norm1(h + apply_dropout(self.attention(h, masks.weights, attended.keys), masks.attention, rate))
        h = self.attend_caption(h, attended)
        return self.norm2(h + apply_dropout(self.feed_forward(h), masks.feed_forward, rate))


class NormFirstBlock(BidirectionalBlock):
    """h + attention(norm(h)), then h + feed_forward(norm(h)), as in vision transformers (arXiv:2010.11929)."""

    def __init__(self, shape: BlockShape):
        super().__init__(shape, epsilon=1e-6, bias=True)

    def forward(self, hidden_states: Tensor, masks: Masks = EVERYTHING) -> Tensor:
        """hidden_states [B, N, width] to the same shape."""
        h, rate = hidden_states, self.shape.dropout
        h = h + apply_dropout(self.attention(self.norm1(h), masks.weights), masks.attention, rate)
        return h + apply_dropout(self.feed_forward(self.norm2(h), masks.hidden), masks.feed_forward, rate)


class LongSkipBlock(BidirectionalBlock):
    """h + attention(norm(h)), then h + feed_forward(norm(h)): U-ViT (Bao et al., arXiv:2209.12152).

    With `skip`, a linear layer first brings h and the output of an earlier block, side by side, back to the width.
    """

    def __init__(self, shape: BlockShape, skip: bool):
        super().__init__(shape, epsilon=1e-5, bias=False)
        self.skip = nn.Linear(2 * shape.width, shape.width) if skip else None

    def forward(
        self,
        hidden_states: Tensor,
        stored: Tensor | None = None,
        masks: Masks = EVERYTHING,
        attended: Attended = NOTHING,
    ) -> Tensor:
        """hidden_states, and with `skip` what an earlier block stored, [B, N, width] to the same shape."""
        h, rate = hidden_states, self.shape.dropout
        if self.skip is not None:
            h = self.skip(torch.cat([h, stored], dim=-1))
        mixed = self.attention(self.norm1(h), masks.weights, attended.keys)
        h = self.attend_caption(h + apply_dropout(mixed, masks.attention, rate), attended)
        return h + apply_dropout(self.feed_forward(self.norm2(h)), masks.feed_forward, rate)
