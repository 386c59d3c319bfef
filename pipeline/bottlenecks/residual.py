"""Residual quantisation: each quantiser reads the residual of those before it."""

from torch import Tensor

from pipeline.bottlenecks.base import Composite
from pipeline.code import Code
from pipeline.components import Node
from pipeline.draws import Draws
from pipeline.ranges import Count, FractionAboveZero


class Residual(Composite):
    """`codebooks` quantisers of one kind; z is the sum of theirs, and the ids go from coarse to fine.

    Lee et al., arXiv:2203.01941. Number k works at `scale`^k of the first one's scale: 1 suits Euclidean codebooks,
    which learn their own; fixed or unit-norm vectors need steps that get finer (0.5 for `binary`, 1 / (L - 1) for
    L levels of `finite_scalar`). With `shared` they are one and the same. The gradient of z goes to h once.
    """

    def __init__(self, bottleneck: Node, codebooks: Count, shared: bool = False, scale: FractionAboveZero = 1.0):
        super().__init__(bottleneck, codebooks, shared)
        self.inputs, self.dim, self.scale = self.parts[0].inputs, self.parts[0].dim, scale

    def latents(self, h: Tensor) -> Tensor:
        return self.parts[0].latents(h)

    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        rest, total, outputs = latents, 0.0, []
        for k, part in enumerate(self.parts_in_order()):
            code, terms = part.quantize(rest / self.scale**k, self.draws_of(k, draws))
            outputs.append((code, terms))
            step = self.scale**k * code.z.detach()
            rest, total = rest - step, total + step
        ids, terms = self.join_codes(outputs)
        return Code(z=self.pass_gradient(total, latents), ids=ids), terms

    def latents_of_parts(self, latents: Tensor, ids: list[Tensor]) -> list[Tensor]:
        inputs = []
        for k, (part, ids_of_part) in enumerate(zip(self.parts_in_order(), ids)):
            inputs.append(latents / self.scale**k)
            latents = latents - self.scale**k * part.lookup(ids_of_part)
        return inputs

    def pass_gradient(self, value: Tensor, latents: Tensor) -> Tensor:
        return self.parts[0].pass_gradient(value, latents)

    def lookup(self, ids: Tensor) -> Tensor:
        parts = zip(self.parts_in_order(), self.split_ids(ids))
        return sum(self.scale**k * part.lookup(ids_of_part) for k, (part, ids_of_part) in enumerate(parts))
