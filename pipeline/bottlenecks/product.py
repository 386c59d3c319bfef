"""Quantisers side by side: each has channels of its own."""

import torch
from torch import Tensor

from pipeline.bottlenecks.base import Composite
from pipeline.code import Code
from pipeline.components import Node
from pipeline.draws import Draws
from pipeline.ranges import Count


class Product(Composite):
    """`codebooks` quantisers of one kind, which each read and write channels of their own; z is theirs in a row.

    Jegou et al., product quantisation, TPAMI 2011. The inner `dim` is that of one part: two vector quantisers of dim 8
    make 16 channels.
    """

    def __init__(self, bottleneck: Node, codebooks: Count):
        super().__init__(bottleneck, codebooks)
        self.inputs = sum(part.inputs for part in self.parts)
        self.dim = sum(part.dim for part in self.parts)

    def latents(self, h: Tensor) -> Tensor:
        return torch.cat(
            [part.latents(inputs) for part, inputs in zip(self.parts, h.chunk(len(self.parts), -1))], dim=-1
        )

    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        groups = latents.chunk(len(self.parts), dim=-1)
        outputs = [
            part.quantize(inputs, self.draws_of(k, draws)) for k, (part, inputs) in enumerate(zip(self.parts, groups))
        ]
        ids, terms = self.join_codes(outputs)
        return Code(z=torch.cat([code.z for code, _ in outputs], dim=-1), ids=ids), terms

    def latents_of_parts(self, latents: Tensor, ids: list[Tensor]) -> list[Tensor]:
        return list(latents.chunk(len(self.parts), dim=-1))

    def pass_gradient(self, value: Tensor, latents: Tensor) -> Tensor:
        pairs = zip(value.chunk(len(self.parts), -1), latents.chunk(len(self.parts), -1))
        return torch.cat([part.pass_gradient(*pair) for part, pair in zip(self.parts, pairs)], dim=-1)

    def lookup(self, ids: Tensor) -> Tensor:
        return torch.cat([part.lookup(ids) for part, ids in zip(self.parts, self.split_ids(ids))], dim=-1)
