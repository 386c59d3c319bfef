"""Residual quantisation of a whole map, each time at a larger scale."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import components
from pipeline.bottlenecks.base import Quantizer, build_token_quantizer
from pipeline.code import Code
from pipeline.components import Arguments, Node
from pipeline.draws import Draws, PartDraws
from pipeline.nn.growing_maps import GrowingMaps
from pipeline.nn.scales import as_map, as_rows, shrink
from pipeline.ranges import Counts, Fraction, Whole


class MultiScale(GrowingMaps, Quantizer):
    """Square maps of features, [B, s * s, dim], to ids at the scales of `sides`, positions a side, which end in s.

    VAR (Tian et al., arXiv:2404.02905), with one quantiser for all scales. At each one the rest of the map is averaged
    down to it and quantised; its code vectors are enlarged bicubically, smoothed by phi(x) = (1 - phi_share) x +
    phi_share conv3x3(x), added to the map so far and subtracted from the rest. `phis` such convolutions are shared by
    the scales, each of which takes the one nearest to its own place among them; 0 is none.

    The code is a row of the ids of all scales, coarse to fine, and z their code vectors. The decoder reads the map that
    they add up to, whose gradient goes to h at once.

    Terms, means over the scales of the mean square of the map so far minus h: `vq` trains the code vectors and phi,
    those of a scale through the maps of all later ones too, and `commit` the encoder (0.25 in VAR). Further terms are
    the means of the quantiser's own.
    """

    def __init__(self, bottleneck: Node, sides: Counts, phis: Whole = 4, phi_share: Fraction = 0.5):
        super().__init__()
        self.begin_scales(build_token_quantizer(bottleneck, "scales"), sides)
        self.phi_share = phi_share
        bound = 1 / math.sqrt(9 * self.dim)  # as convolutions begin
        self.kernels = nn.Parameter(torch.empty(phis * self.dim, self.dim, 3, 3).uniform_(-bound, bound))
        self.offsets = nn.Parameter(torch.empty(phis, self.dim).uniform_(-bound, bound))
        self.own_terms = own_terms(components.check("bottlenecks", bottleneck), phis)

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        part, values = components.check("bottlenecks", arguments.bottleneck)
        own = own_terms((part, values), arguments.phis)
        return (*own, *(name for name in part.terms(values) if name not in ("vq", "commit")))

    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        self.check_features(latents)
        self.quantizer.begin(self.quantizer.latents(latents), draws)
        tables, target = self.maps(latents.device), as_map(latents, self.sides[-1])
        total, codes, outputs = tables.start(len(latents)), [], []
        for level, side in enumerate(self.sides):
            rest = as_rows(shrink(target - total.detach(), side))
            given = None if draws is None else PartDraws(draws, f"level_{level}")
            code, terms = self.quantizer.quantize(self.quantizer.latents(rest), given)
            total = tables.add(total, self.quantizer.lookup(code.ids), level)
            terms["commit"] = F.mse_loss(total.detach(), target)
            if "vq" in self.own_terms:
                terms["vq"] = F.mse_loss(total, target.detach())
            codes.append(code)
            outputs.append(terms)
        terms = {name: torch.stack([terms[name] for terms in outputs]).mean() for name in outputs[0]}
        z, ids = (torch.cat([getattr(code, name) for code in codes], dim=1) for name in ("z", "ids"))
        return Code(z=z, ids=ids), terms


def own_terms(quantizer: tuple[type, Arguments], phis: int) -> tuple[str, ...]:
    """The terms of the maps; without phi, code vectors that learn by no gradient leave none to train them."""
    part, values = quantizer
    return ("vq", "commit") if phis or "vq" in part.terms(values) else ("commit",)
