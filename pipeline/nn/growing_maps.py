"""Codes of a map at growing scales: how their rows add up to the map that a decoder reads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline import components
from pipeline.code import LatentSpec, plain_ids
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.entry_points import EntryPoints
from pipeline.nn.full_precision import full_precision
from pipeline.nn.scales import LevelTables, as_map, as_rows, nearest_kernels, shrink
from pipeline.validation import SettingError

LARGEST_TABLE = 2**20  # rows of a table of code vectors


class GrowingMaps(EntryPoints):
    """What the bottlenecks have in common that quantise square maps of `sides` positions by one `quantizer`.

    It comes before `Quantizer` among the bases of one. At a scale the rest of a map is averaged down to it, and code
    vectors are enlarged bicubically and smoothed by phi(x) = (1 - phi_share) x + phi_share conv3x3(x), with the
    convolutions `kernels` [phis * dim, dim, 3, 3] and `offsets` [phis, dim], or left as they are where there are none.
    """

    entry_points = ("lookup", "decoder_input", "level_tables", "redraw_ids")
    quantizer: nn.Module
    kernels: Tensor
    offsets: Tensor
    phi_share: float = 0.0

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        part, values = components.check("bottlenecks", arguments.bottleneck)
        return part.batch_statistics(values)

    def begin_scales(self, quantizer: nn.Module, sides: Sequence[int]) -> None:
        """Take what is known of the quantiser; called by the constructor. ValueError where sides do not grow."""
        if any(low >= high for low, high in zip(sides, sides[1:])):
            raise SettingError("sides", f" are {list(sides)}; give sides of maps that grow")
        self.quantizer, self.sides, self.tokens = quantizer, tuple(sides), sides[-1] ** 2
        for module in quantizer.modules():
            if hasattr(module, "calls"):
                module.calls = module.calls * len(sides)
        self.inputs, self.dim, self.split = quantizer.inputs, quantizer.dim, quantizer.split
        self.vocab, self.codebooks = quantizer.vocab, quantizer.codebooks

    def spec(self, grid: Sequence[int]) -> LatentSpec:
        side = self.sides[-1]
        if tuple(grid) != (side, side):
            raise ValueError(
                f"bottleneck.sides ends in {side}, and the features are a grid of {'x'.join(map(str, grid))}; give"
                " sides of square maps, the last that of the features"
            )
        levels = tuple(side * side for side in self.sides)
        return LatentSpec((sum(levels),), self.dim, self.vocab, self.codebooks, levels)

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
        if self.vocab > LARGEST_TABLE:
            raise ValueError(f"a table of {self.vocab} code vectors is too large; take {LARGEST_TABLE} codes or fewer")
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
