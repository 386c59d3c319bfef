"""Residual quantisation of a whole map, each time at a larger scale."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import components
from pipeline.bottlenecks.base import ENUMERABLE, Quantizer
from pipeline.code import Code, LatentSpec, plain_ids
from pipeline.components import Arguments, Node
from pipeline.draws import Draws, PartDraws
from pipeline.nn.full_precision import full_precision
from pipeline.nn.scales import LevelTables, as_map, as_rows, nearest_kernels, shrink
from pipeline.ranges import Counts, Fraction, Whole
from pipeline.validation import SettingError


class MultiScale(Quantizer):
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
        if any(low >= high for low, high in zip(sides, sides[1:])):
            raise SettingError("sides", f" are {list(sides)}; give sides of maps that grow")
        self.quantizer = components.build("bottlenecks", bottleneck)
        if not isinstance(self.quantizer, Quantizer) or self.quantizer.tokens is not None:
            raise ValueError(f"scales are of tokens with ids of their own, which {bottleneck['kind']} does not make")
        for module in self.quantizer.modules():
            if isinstance(module, Quantizer):
                module.calls = module.calls * len(sides)
        self.inputs, self.dim = self.quantizer.inputs, self.quantizer.dim
        self.vocab, self.codebooks = self.quantizer.vocab, self.quantizer.codebooks
        self.sides, self.tokens, self.phi_share = tuple(sides), sides[-1] ** 2, phi_share
        bound = 1 / math.sqrt(9 * self.dim)  # as convolutions begin
        self.kernels = nn.Parameter(torch.empty(phis * self.dim, self.dim, 3, 3).uniform_(-bound, bound))
        self.offsets = nn.Parameter(torch.empty(phis, self.dim).uniform_(-bound, bound))
        self.own_terms = own_terms(components.check("bottlenecks", bottleneck), phis)

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        part, values = components.check("bottlenecks", arguments.bottleneck)
        own = own_terms((part, values), arguments.phis)
        return (*own, *(name for name in part.terms(values) if name not in ("vq", "commit")))

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        part, values = components.check("bottlenecks", arguments.bottleneck)
        return part.batch_statistics(values)

    def spec(self, grid: Sequence[int]) -> LatentSpec:
        side = self.sides[-1]
        if tuple(grid) != (side, side):
            raise ValueError(
                f"bottleneck.sides ends in {side}, and the features are a grid of {'x'.join(map(str, grid))}; give"
                " sides of square maps, the last that of the features"
            )
        levels = tuple(side * side for side in self.sides)
        return LatentSpec((sum(levels),), self.dim, self.vocab, self.codebooks, levels)

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

    def check_features(self, latents: Tensor) -> None:
        """ValueError for features of another number than the map has places."""
        if latents.shape[1] != self.tokens:
            raise ValueError(
                f"sides that end in {self.sides[-1]} are of maps of {self.tokens} places, not of {latents.shape[1]}"
            )

    def pass_gradient(self, value: Tensor, latents: Tensor) -> Tensor:
        return self.quantizer.pass_gradient(value, latents)

    def lookup(self, ids: Tensor) -> Tensor:
        return self.quantizer.lookup(ids)

    def decoder_input(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        """The map that z [B, N, dim] of all scales adds up to, [B, s * s, dim]."""
        with full_precision(z), torch.set_grad_enabled(torch.is_grad_enabled() and h is None):
            merged = as_rows(self.maps(z.device).merge(z)).to(z.dtype)
        return merged if h is None else self.pass_gradient(merged, h)

    def maps(self, device: torch.device) -> LevelTables:
        """How the scales add up to a map; without code vectors."""
        unchanged = torch.zeros(self.dim, self.dim, 3, 3, device=device)
        unchanged[:, :, 1, 1] = torch.eye(self.dim, device=device)
        kernels, offsets = unchanged[None], unchanged.new_zeros(1, self.dim)
        if len(self.offsets):
            kernels = torch.lerp(kernels, self.kernels.float().unflatten(0, (-1, self.dim)), self.phi_share)
            offsets = self.phi_share * self.offsets.float()
        chosen = nearest_kernels(len(self.sides), len(kernels))
        return LevelTables(self.sides, kernels[chosen], offsets[chosen], unchanged.new_zeros(0, 0, self.dim))

    @torch.no_grad()
    def level_tables(self) -> LevelTables:
        if self.vocab > ENUMERABLE:
            raise ValueError(f"a table of {self.vocab} code vectors is too large; take {ENUMERABLE} codes or fewer")
        device = self.kernels.device
        first = torch.zeros(1, self.vocab, self.codebooks, dtype=torch.int64, device=device)
        numbers, tables = torch.arange(self.vocab, device=device), []
        base = self.lookup(plain_ids(first)).float() * (self.codebooks - 1) / self.codebooks
        for k in range(self.codebooks):  # of a sum f = f_1 + f_2 + ..., f_k up to constants that cancel
            ids = first.clone()
            ids[..., k] = numbers
            tables.append((self.lookup(plain_ids(ids)).float() - base)[0])
        return self.maps(device)._replace(codebook=torch.stack(tables))

    def redraw_ids(
        self, ids: Tensor, rate: float | Tensor, count: int, draws: Draws, latents: Tensor | None = None
    ) -> Tensor:
        points = None if latents is None else self.latents_of_levels(latents, ids)
        return self.quantizer.redraw_ids(ids, rate, count, draws, points)

    @torch.no_grad()
    def latents_of_levels(self, latents: Tensor, ids: Tensor) -> Tensor:
        """What was quantised to ids [B, N] at each scale, [B, N, dim], of the latents [B, s * s, dim] of the map."""
        tables, target, points = self.maps(latents.device), as_map(latents, self.sides[-1]), []
        total = tables.start(len(latents))
        for level, rows in enumerate(tables.split(self.lookup(ids))):
            points.append(self.quantizer.latents(as_rows(shrink(target - total, self.sides[level]))))
            total = tables.add(total, rows, level)
        return torch.cat(points, dim=1)


def own_terms(quantizer: tuple[type, Arguments], phis: int) -> tuple[str, ...]:
    """The terms of the maps; without phi, code vectors that learn by no gradient leave none to train them."""
    part, values = quantizer
    return ("vq", "commit") if phis or "vq" in part.terms(values) else ("commit",)
