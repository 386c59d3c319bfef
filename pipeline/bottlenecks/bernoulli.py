"""Every token becomes independent bits with learned probabilities, and its vector the sum of the rows of those set."""

import torch
from torch import Tensor, nn

from pipeline.bottlenecks.base import Bottleneck, draw_ranks
from pipeline.code import Code, plain_ids, stack_ids
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.full_precision import FullPrecisionLinear, full_precision
from pipeline.nn.straight_through import straight_through
from pipeline.ranges import Count, Positive


class Bernoulli(Bottleneck):
    """Features h [B, N, dim] to ids [B, N, bits] of 0 and 1 and z = ids @ rows, [B, N, dim].

    The probability of a 1 is p = sigmoid(l), l [B, N, bits] a linear function of h. With draws, which training gives, a
    bit is 1 with probability sigmoid(l / temperature), without them where p > 0.5; its gradient is that of p. A token's
    2^bits values have no numbers: its bits are `bits` codebooks of two ids each. Instella-T2I (arXiv:2506.21022).

    Term: `uncertainty`, mean p (1 - p), the variance of the bits at temperature 1, which is 0 where all are certain.
    """

    vocab = 2

    def __init__(self, dim: Count, bits: Count, temperature: Positive = 0.1):
        super().__init__()
        self.dim = self.inputs = dim
        self.codebooks, self.temperature = bits, temperature
        self.logits = FullPrecisionLinear(dim, bits)
        self.rows = nn.Parameter(torch.randn(bits, dim) * bits**-0.5)

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return ("uncertainty",)

    def forward(self, h: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        with full_precision(h):
            logits = self.latents(h)
            p = logits.sigmoid()
            if draws is None:
                ids = p > 0.5
            else:
                ids = draws.uniform("bits", tuple(p.shape[1:])).to(p.device) < (logits / self.temperature).sigmoid()
            z = straight_through(ids.float(), p) @ self.rows.float()
            return Code(z=z.to(h.dtype), ids=plain_ids(ids.long())), {"uncertainty": (p * (1 - p)).mean()}

    def latents(self, h: Tensor) -> Tensor:
        """The logits of the bits, [B, N, bits] float32."""
        return self.logits(h)

    def lookup(self, ids: Tensor) -> Tensor:
        return stack_ids(ids).to(self.rows.dtype) @ self.rows

    @torch.no_grad()
    def redraw_ids(
        self, ids: Tensor, rate: float | Tensor, count: int, draws: Draws, latents: Tensor | None = None
    ) -> Tensor:
        """As in the base; a bit has one other code, whatever its latent, so that `count` is 1 or 2."""
        return (ids.flatten(1) ^ draw_ranks(ids.flatten(1), rate, count, draws)).view_as(ids)
