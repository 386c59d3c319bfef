"""Causal attention whose queries and keys are turned at some positions, and get learned vectors added at others."""

from torch import Tensor

from pipeline.nn.causal import BlockShape, CausalAttention, CausalBlock
from pipeline.nn.embeddings import rotate

Offsets = tuple[Tensor, Tensor, Tensor]  # cosines and sines [N, D], and what is added, [N, heads * D]


class OffsetAttention(CausalAttention):
    """Queries and keys, after their turn, plus vectors that all layers share; see Hita, arXiv:2507.02358."""

    def turn(self, pairs: Tensor, rotary: Offsets) -> Tensor:
        cosines, sines, added = rotary
        offsets = added.unflatten(-1, (self.heads, -1)).transpose(0, 1)  # [heads, N, D]
        turned = rotate(pairs, cosines, sines)
        return turned + offsets.to(turned.dtype)


class OffsetBlock(CausalBlock):
    """A `CausalBlock` with an `OffsetAttention`."""

    def __init__(self, shape: BlockShape):
        super().__init__(shape)
        self.attention = OffsetAttention(shape)
