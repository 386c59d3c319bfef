"""Quantisers side by side that are kept from saying the same: their codes at a position are to be orthogonal."""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.bottlenecks.base import SideBySide
from pipeline.code import Code
from pipeline.components import Arguments
from pipeline.draws import Draws


class Factorised(SideBySide):
    """A `product` with a term more, `disentangle`: FQGAN (Bai et al., arXiv:2411.16681, equation 4; weight 0.1 there).

    It is the mean over pairs of parts of the mean squared cosine between their codes at the same position. As in the
    public implementation its gradient goes to the latents as that of the codes does, and not to the codebooks. With one
    part there are no pairs, and the term is 0.
    """

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return (*super().terms(arguments), "disentangle")

    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        code, terms = super().quantize(latents, draws)
        return code, terms | {"disentangle": disentangle(code.z.chunk(len(self.parts), dim=-1))}


def disentangle(codes: tuple[Tensor, ...]) -> Tensor:
    """Mean over pairs of the mean squared cosine of codes, each [B, N, dim]."""
    units = [F.normalize(code, dim=-1) for code in codes]
    pairs = [(one * other).sum(dim=-1).square().mean() for one, other in combinations(units, 2)]
    return torch.stack(pairs).mean() if pairs else codes[0].new_zeros(())
