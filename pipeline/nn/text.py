"""How a network reads captions: features at its width, a vector of the whole, and a null where there is none."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.code import Condition, TextSpec
from pipeline.nn.blocks import NOTHING, Attended, Rotary

TextReading = Literal["context", "cross_attention", "pooled"]
TextProjection = Literal["linear", "mlp"]
TextNull = Literal["learned", "empty"]
PARTS = ("text", "blocks.*.text_attention")  # of a network, see Network.parts


class Caption(NamedTuple):
    """A batch of captions as a network's blocks take them."""

    places: Tensor | None  # [B, T, width]; None where the vector is all that is read
    mask: Tensor  # [B, T] bool, with one True at least
    vector: Tensor | None  # [B, width], for modulation
    crossed: bool  # whether blocks attend to the places across, and not in their own sequence


class NullCaption(nn.Module):
    """Puts the null in place of captions without tokens: learned features, or those of the empty caption.

    Learned ones begin as N(0, 1 / channels) at every place, as in PixArt and LlamaGen. Those of the empty caption are
    buffers, which `set_empty` fills before a training. There are none of what is not read: of `places`, or vectors.
    """

    def __init__(self, text: TextSpec, kind: TextNull, places: bool = True):
        super().__init__()
        shapes = {"features": (text.tokens, text.layers * text.dim) if places else None}
        shapes["pooled"] = (text.pooled,) if text.pooled else None
        for name, shape in shapes.items():
            if kind == "learned":
                value = None if shape is None else nn.Parameter(torch.randn(shape) * shape[-1] ** -0.5)
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, None if shape is None else torch.zeros(shape))
        self.register_buffer("mask", torch.arange(text.tokens) < (text.tokens if kind == "learned" else 1))

    @torch.no_grad()
    def set_empty(self, empty: Condition) -> None:
        """Take the features of the empty caption, a condition of one image; without a token its first place is read."""
        self.mask.copy_(empty.text_mask[0])
        self.mask[0] |= ~self.mask.any()
        for null, given in ((self.features, empty.text), (self.pooled, empty.pooled)):
            if null is not None:
                null.copy_(given[0])

    def forward(self, text: Tensor, mask: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same features [B, T, C], mask [B, T] and vectors [B, P] with the null where a row of `mask` has no True.

        Features of places without a token are zero.
        """
        absent = ~mask.any(dim=1, keepdim=True)  # [B, 1]
        mask = torch.where(absent, self.mask, mask)
        text = text if self.features is None else torch.where(absent[..., None], self.features, text)
        pooled = None if self.pooled is None else torch.where(absent, self.pooled, pooled)
        return text.masked_fill(~mask[..., None], 0), mask, pooled


class TextReader(nn.Module):
    """Captions' features as `reading` says: at the width, in the blocks' sequence or across, or their vector alone.

    The vector is the encoder's pooled one, projected, whatever the reading; for `pooled` it is the mean over the places
    that hold tokens where the encoder has none. A projection is a linear layer, or two with a GELU in tanh form
    between (`mlp`, as in PixArt and LlamaGen).
    """

    def __init__(self, text: TextSpec, width: int, reading: TextReading, projection: TextProjection, null: TextNull):
        super().__init__()
        self.spec, self.crossed, channels = text, reading == "cross_attention", text.layers * text.dim
        self.null = NullCaption(text, null, places=reading != "pooled" or not text.pooled)
        self.embedding = None if reading == "pooled" else make_projection(projection, channels, width)
        vector = text.pooled or (channels if reading == "pooled" else 0)
        self.pooled_embedding = make_projection(projection, vector, width) if vector else None

    def forward(self, condition: Condition | None, batch: int, device: torch.device) -> Caption:
        """The captions of a batch; of a condition without text the null's. ValueError for features of another shape."""
        text, mask, pooled = self.null(*read_features(self.spec, condition, batch, device))
        places = None if self.embedding is None else self.embedding(text.to(weight_type(self.embedding)))
        return Caption(places, mask, self._vector(text, mask, pooled), self.crossed)

    def _vector(self, text: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor | None:
        if self.pooled_embedding is None:
            return None
        if pooled is None:
            pooled = text.float().sum(dim=1) / mask.sum(dim=1, keepdim=True)  # zero where there is no token
        return self.pooled_embedding(pooled.to(weight_type(self.pooled_embedding)))


def read_features(
    spec: TextSpec, condition: Condition | None, batch: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Text [B, T, C], its mask and pooled vectors [B, P] of captions of a spec, and no tokens where there are none.

    ValueError for features of another shape.
    """
    shape = (batch, spec.tokens, spec.layers * spec.dim)
    if condition is None or condition.text is None:
        pooled = torch.zeros(batch, spec.pooled, device=device) if spec.pooled else None
        return torch.zeros(shape, device=device), torch.zeros(shape[:2], dtype=torch.bool, device=device), pooled
    text, mask, pooled = condition.text, condition.text_mask, condition.pooled
    if mask is None or text.shape != shape or mask.shape != shape[:2]:
        masks = "none" if mask is None else list(mask.shape)
        raise ValueError(
            f"captions are {list(text.shape)} with masks {masks}, and the network reads {list(shape)} with masks"
            f" {list(shape[:2])}; give features of the text encoder that it was trained with"
        )
    if spec.pooled and (pooled is None or pooled.shape != (batch, spec.pooled)):
        given = "without pooled vectors" if pooled is None else f"with pooled vectors {list(pooled.shape)}"
        raise ValueError(f"captions are {given}, and the network reads [{batch}, {spec.pooled}]; give those, too")
    return text, mask, pooled


def make_projection(kind: TextProjection, channels: int, width: int) -> nn.Module:
    """Features of so many channels to the width of a network."""
    if kind == "linear":
        return nn.Linear(channels, width)
    return nn.Sequential(nn.Linear(channels, width), nn.GELU(approximate="tanh"), nn.Linear(width, width))


def weight_type(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def join_caption(h: Tensor, rotary: Rotary | None, caption: Caption | None) -> tuple[Tensor, Rotary | None, Attended]:
    """A sequence h [B, N, width] with what its blocks attend to: the same, or with the caption's places after its own.

    Rotary positions do not turn the caption.
    """
    if caption is None or caption.places is None:
        return h, rotary, NOTHING
    if caption.crossed:
        return h, rotary, Attended(None, caption.places, caption.mask[:, None, None])
    keys = F.pad(caption.mask, (h.shape[1], 0), value=True)[:, None, None]  # [B, 1, 1, N + T]
    if rotary is not None:
        rows = (0, 0, 0, caption.places.shape[1])
        rotary = (F.pad(rotary[0], rows, value=1.0), F.pad(rotary[1], rows), *rotary[2:])
    return torch.cat([h, caption.places.to(h.dtype)], dim=1), rotary, Attended(keys)
