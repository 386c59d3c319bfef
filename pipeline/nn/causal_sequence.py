"""The sequence that a causal transformer reads: its positions, what comes before the tokens, and its memory."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pipeline.nn.attention import causal_mask
from pipeline.nn.blocks import NOTHING, Attended, Rotary
from pipeline.nn.text import Caption
from pipeline.nn.token_sampling import TokenMemory


@dataclass
class SequencePositions:
    """The positions of a sequence, the prefix first; B is 1, or axes are missing, where all images have the same."""

    added: Tensor | None  # [B, S, width]  joins the embedding
    rotary: Rotary | None  # each [B, 1, S, D]  turns queries and keys

    def at(self, span: slice) -> tuple[Tensor | None, Rotary | None]:
        added = None if self.added is None else self.added[..., span, :]
        return added, None if self.rotary is None else tuple(table[..., span, :] for table in self.rotary)

    def narrow(self, rows: int) -> "SequencePositions":
        """Those of the first `rows` of a batch whose images have positions of their own."""
        added = None if self.added is None else self.added[:rows]
        return SequencePositions(added, None if self.rotary is None else tuple(table[:rows] for table in self.rotary))


@dataclass
class Asked:
    """What is asked for, embedded."""

    vector: Tensor  # [B, width]: the class, and the vector of the caption
    caption: Caption | None  # its places end with the last token, see `align_right`

    def attended(self, span: slice) -> Attended:
        """What positions `span` of the sequence attend to; any number of them at its beginning, else one."""
        caption = self.caption
        if caption is None or caption.places is None:
            return NOTHING
        if caption.crossed:
            return Attended(None, caption.places, caption.mask[:, None, None])
        keys = F.pad(caption.mask, (0, span.stop - caption.mask.shape[1]), value=True)  # [B, S]
        return Attended(keys[:, None, None] if span.start else causal_mask(keys))

    def narrow(self, rows: int) -> "Asked":
        caption = self.caption
        if caption is not None:
            kept = [None if part is None else part[:rows] for part in caption[:3]]
            caption = Caption(*kept, caption.crossed)
        return Asked(self.vector[:rows], caption)


@dataclass
class Memory(TokenMemory):
    """What a network keeps between the tokens of one sampling; made by `CausalTransformer.begin`."""

    order: Tensor | None = None
    asked: Asked | None = None
    positions: SequencePositions | None = None

    def narrow(self, rows: int) -> None:
        super().narrow(rows)
        self.asked = self.asked.narrow(rows)
        if self.order is not None:
            self.positions = self.positions.narrow(rows)


def align_right(caption: Caption | None) -> Caption | None:
    """A caption whose places with tokens, in their order, come after those without, so that the last one has one."""
    if caption is None or caption.places is None or caption.crossed:
        return caption
    order = caption.mask.int().argsort(dim=1, stable=True)  # [B, T]
    places = caption.places.gather(1, order[..., None].expand_as(caption.places))
    return caption._replace(places=places, mask=caption.mask.gather(1, order))
