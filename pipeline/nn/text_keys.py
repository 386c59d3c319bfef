"""Transformer blocks whose tokens attend to themselves and to one layer of a text encoder's features."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn

from pipeline.code import Condition, TextSpec
from pipeline.draws import Draws
from pipeline.nn.blocks import AttentionProcessor, GELUFeedForward, RMSNorm, modulate
from pipeline.nn.causal import Cache
from pipeline.nn.conditions import text_spec
from pipeline.nn.dropout import apply_dropout
from pipeline.nn.text import NullCaption, TextNull, read_features

EPSILON = 1e-6  # of every norm
Kept = (
    tuple[Tensor, Tensor] | tuple[None, None]
)  # what dropout leaves after attention and feed-forward layer, [B, n, C]


class TextKeys(NamedTuple):
    """What the blocks of one pass read of captions, see `LayeredText`."""

    layers: list[Tensor]  # for each block, [B, T, D]
    mask: Tensor  # [B, T] bool

    def narrow(self, rows: int) -> "TextKeys":
        """Those of the first `rows` of the batch."""
        return TextKeys([layer[:rows] for layer in self.layers], self.mask[:rows])


class LayeredText(nn.Module):
    """Captions for `depth` blocks that read one layer of a text encoder each.

    Block i of as many blocks as the encoder has layers reads layer i; of another number, the layer at the same share of
    the way. Captions without tokens are the null, see `pipeline.nn.text.NullCaption`.
    """

    def __init__(self, text: TextSpec, depth: int, null: TextNull):
        super().__init__()
        self.spec, self.depth, self.null = text, depth, NullCaption(text, null)

    def forward(self, condition: Condition | None, batch: int, device: torch.device) -> TextKeys:
        text, mask, _ = self.null(*read_features(self.spec, condition, batch, device))
        layers = text.chunk(self.spec.layers, dim=-1)
        return TextKeys([layers[i * len(layers) // self.depth] for i in range(self.depth)], mask)


def make_layered_text(arguments: Mapping[str, Any]) -> LayeredText | None:
    """Of a network with these constructor arguments; None where it reads no captions."""
    text = text_spec(arguments)
    return text and LayeredText(text, arguments["depth"], arguments["text_null"])


class KeyShape(NamedTuple):
    """What the blocks of one network have in common."""

    width: int
    heads: int
    text_dim: int  # channels of one layer of the text encoder; 0 where no text is read
    places: int  # tokens, each of which has a learned position in every block
    residual_dropout: float = 0.0  # of what attention and feed-forward layer add to the stream


class TextKeyAttention(nn.Module, AttentionModuleMixin):
    """Attention of tokens [B, N, width] to text [B, T, width] and to themselves, with norms of queries and keys."""

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.query_norm = RMSNorm(width // heads, EPSILON)
        self.key_norm = RMSNorm(width // heads, EPSILON)
        self.proj = nn.Linear(width, width, bias=False)
        self.set_processor(AttentionProcessor())

    def forward(self, x: Tensor, text: Tensor | None, mask: Tensor | None, cache: Cache | None = None) -> Tensor:
        """`mask` [B or 1, N, keys] bool says what is seen, None everything; with a cache x follow what is in it."""
        context = x if text is None else torch.cat([text.to(x.dtype), x], dim=1)
        keys, values = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        queries = self.query_norm(self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        queries, keys = queries.to(values.dtype), self.key_norm(keys).to(values.dtype)  # float32 under autocast
        if cache is not None:
            keys, values = cache.append(keys, values)
        mixed = self.processor(queries, keys, values, mask=None if mask is None else mask[:, None])
        return self.proj(mixed.transpose(1, 2).flatten(2))


class TextKeyBlock(nn.Module):
    """h + attention(norm(h) + positions, text), then h + feed_forward(norm(h)): Instella-T2I (arXiv:2506.21022).

    `text_projection` brings the text encoder's layer that the block reads to its width.
    """

    def __init__(self, shape: KeyShape):
        super().__init__()
        self.rate = shape.residual_dropout
        self.norm1, self.norm2 = RMSNorm(shape.width, EPSILON), RMSNorm(shape.width, EPSILON)
        self.positions = nn.Parameter(torch.zeros(shape.places, shape.width))
        self.text_projection = nn.Linear(shape.text_dim, shape.width) if shape.text_dim else None
        self.attention = TextKeyAttention(shape.width, shape.heads)
        self.feed_forward = GELUFeedForward(shape.width, 4.0)

    def masks(self, draws: Draws | None, tokens: int, name: str) -> Kept:
        """This block's dropout masks in one step, drawn outside `forward`, which thus is a function of tensors."""
        if draws is None or not self.rate:
            return None, None
        shape = (tokens, self.positions.shape[1])
        return tuple(draws.keep_mask(f"{name}.{branch}", shape, self.rate) for branch in ("attention", "feed_forward"))

    def project(self, text: Tensor | None) -> Tensor | None:
        return None if text is None else self.text_projection(text.to(self.text_projection.weight.dtype))

    def forward(
        self,
        hidden_states: Tensor,
        text: Tensor | None,
        mask: Tensor | None,
        span: slice = slice(None),
        cache: Cache | None = None,
        kept: Kept = (None, None),
    ) -> Tensor:
        """hidden_states [B, n, width], the tokens of `span`; text [B, T, D] as the encoder gives it, not yet cached."""
        h = hidden_states
        x = self.norm1(h) + self.positions[span].to(h.dtype)
        h = h + apply_dropout(self.attention(x, self.project(text), mask, cache), kept[0], self.rate)
        return h + apply_dropout(self.feed_forward(self.norm2(h)), kept[1], self.rate)


class ModulatedTextKeyBlock(TextKeyBlock):
    """The block with its norms, which have no weights, and branches shifted, scaled and gated (adaLN-Zero)."""

    def __init__(self, shape: KeyShape):
        super().__init__(shape)
        self.norm1, self.norm2 = (nn.LayerNorm(shape.width, EPSILON, elementwise_affine=False) for _ in range(2))
        self.modulation = nn.Linear(shape.width, 6 * shape.width)

    def forward(
        self,
        hidden_states: Tensor,
        condition: Tensor,
        text: Tensor | None,
        mask: Tensor | None,
        kept: Kept = (None, None),
    ) -> Tensor:
        """As the base's, of all tokens; condition [B, width] is that of the image after its SiLU."""
        h = hidden_states
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = modulate(self.norm1(h), shift1, scale1) + self.positions.to(h.dtype)
        branch = self.attention(x, self.project(text), mask)
        h = torch.addcmul(h, gate1, apply_dropout(branch, kept[0], self.rate))
        branch = self.feed_forward(modulate(self.norm2(h), shift2, scale2))
        return torch.addcmul(h, gate2, apply_dropout(branch, kept[1], self.rate))


def visible(queries: slice, text: Tensor | None, causal: bool, device: torch.device) -> Tensor | None:
    """Which keys, [text | tokens up to the last query], the tokens of `queries` see, [B or 1, n, keys]; None: all.

    `text` [B, T] bool says which places of it are seen. `causal`: a token sees those before it and itself.
    """
    if text is None and (not causal or queries.stop - queries.start == 1):
        return None
    own = torch.ones(queries.stop - queries.start, queries.stop, dtype=torch.bool, device=device)
    own = own.tril(queries.start)[None] if causal else own[None]
    if text is None:
        return own
    seen = text[:, None].expand(-1, own.shape[1], -1)
    return torch.cat([seen, own.expand(len(text), -1, -1)], dim=2)
