"""What every bottleneck promises: features in, a code and its own loss terms out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, LatentSpec, plain_ids, stack_ids
from pipeline.components import Arguments, Node
from pipeline.draws import Draws, PartDraws
from pipeline.nn.clusters import distances, nearest_centres
from pipeline.nn.entropy import tokens_at_once
from pipeline.nn.entry_points import EntryPoints
from pipeline.nn.full_precision import full_precision
from pipeline.nn.processes import world_size
from pipeline.nn.scales import LevelTables
from pipeline.nn.straight_through import straight_through
from pipeline.ranges import Count, RangedArguments

ENUMERABLE = 2**20  # codes at most among which the nearest are looked for one by one


class Segment(NamedTuple):
    """Tokens in a row that have codebooks of their own."""

    tokens: int | None  # None: all that are left
    inputs: int  # channels that are read of a feature, the first ones
    dim: int  # channels of z that are not zero, the first ones


class Bottleneck(RangedArguments, EntryPoints, ABC):
    """Compresses features [B, N, inputs] into a code of `dim` channels per token."""

    entry_points = ("moments", "lookup", "redraw_ids", "decoder_input", "level_tables")
    inputs: int  # channels it reads
    dim: int  # channels of z
    vocab: int = 0  # codebook size; 0 when continuous
    codebooks: int = 1
    tokens: int | None = None  # features of an image that it reads all together; None: any number, each by itself
    segments: tuple[Segment, ...] = ()  # of a row whose tokens have different codebooks, in order
    split: tuple[int, ...] = ()  # channels of each part of h and z, where different decoders may read them

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        """Names of the loss terms that `forward` returns, known without building."""
        return ()

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        """What it computes over all images of a batch together, and so, with `loop.accumulate`, of a micro-batch.

        Everything else is a mean over images, which micro-batches leave as it is.
        """
        return ()

    def spec(self, grid: Sequence[int]) -> LatentSpec:
        """The geometry of its code of features on a grid; ValueError where it makes none of that grid."""
        return LatentSpec(tuple(grid), self.dim, self.vocab, self.codebooks)

    @abstractmethod
    def forward(self, h: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        """The code at its own scale and the unweighted terms. Without draws it is deterministic (the mode)."""

    def decoder_input(self, z: Tensor, h: Tensor | None = None) -> Tensor:
        """What the decoder reads of z [B, N, dim]: z itself, where a token of the code is one of the features.

        With the features h that z is of, with the gradient that they get from the decoder.
        """
        return z

    def level_tables(self) -> LevelTables:
        """How the map that the decoder reads is made of ids, level by level; ValueError where it is not so made."""
        raise ValueError(f"{type(self).__name__} makes no levels of a map; take the bottleneck multi_scale")

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the posterior, each [B, N, dim]; ValueError where there is no posterior."""
        raise ValueError(f"{type(self).__name__} has no posterior; set latents.posterior=mode")

    def lookup(self, ids: Tensor) -> Tensor:
        """ids [B, N] or [B, N, codebooks] to z [B, N, dim]; ValueError for a continuous bottleneck."""
        raise ValueError(f"{type(self).__name__} is continuous; it has no ids")

    def redraw_ids(
        self, ids: Tensor, rate: float | Tensor, count: int, draws: Draws, latents: Tensor | None = None
    ) -> Tensor:
        """Ids of the shape of `ids`, each with probability `rate` drawn uniformly from `count` near codes.

        These are its own code and the count - 1 others nearest to its code vector, or to its latent where `latents` [B,
        N, dim] are given (those of `Quantizer.latents`). `rate` is one number or one per image, [B, 1]. With several
        codebooks each is redrawn separately. ValueError where that is not defined.
        """
        raise ValueError(f"{type(self).__name__} is continuous; it has no ids to draw anew")


class Quantizer(Bottleneck):
    """A bottleneck whose z is one of finitely many vectors; in float32 whatever the precision of h.

    `latents` brings features into the space of those vectors and `quantize` takes the nearest: two steps, so
    that quantisers can be combined.
    """

    entry_points = ("begin", "latents", "quantize")  # which quantisers that combine others call
    calls: int = 1  # calls of this module in one pass through the whole

    def begin(self, latents: Tensor, draws: Draws | None) -> None:
        """What comes before the first batch [B, N, dim] of a training: the start of a codebook that is found in it."""

    def forward(self, h: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        with full_precision(h):
            code, terms = self.quantize(self.latents(h.float()), draws)
        return Code(z=code.z.to(h.dtype), ids=code.ids), terms

    def latents(self, h: Tensor) -> Tensor:
        """h [B, N, inputs] in the space of the code vectors, [B, N, dim]."""
        return h

    @abstractmethod
    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        """The code of latents [B, N, dim], with a gradient to them, and the terms."""

    @torch.no_grad()
    def redraw_ids(
        self, ids: Tensor, rate: float | Tensor, count: int, draws: Draws, latents: Tensor | None = None
    ) -> Tensor:
        """As in the base; of codes that are equally near, those that the search finds first."""
        if self.vocab > ENUMERABLE:
            raise ValueError(f"the nearest of {self.vocab} codes cannot be looked for; take {ENUMERABLE} or fewer")
        rank = draw_ranks(ids, rate, count, draws)
        moved, redrawn = rank > 0, ids.clone()
        points = (self.lookup(ids) if latents is None else latents).float()[moved]
        rows = self.lookup(torch.arange(self.vocab, device=ids.device)).float()
        points, rows = self.compared(points), self.compared(rows)
        columns = (column.split(tokens_at_once(self.vocab)) for column in (points, ids[moved], rank[moved]))
        redrawn[moved] = torch.cat([nearest_of_rank(*part, rows, count) for part in zip(*columns)])
        return redrawn

    def compared(self, vectors: Tensor) -> Tensor:
        """Vectors [..., dim] in the space where the nearest of the code vectors is that of the least distance."""
        return vectors

    def pass_gradient(self, value: Tensor, latents: Tensor) -> Tensor:
        """`value` with the gradient that this quantiser gives to `latents`."""
        return straight_through(value, latents)


class CodebookQuantizer(Quantizer):
    """Latents to the nearest of the `vocab` rows of `codebook`, the first one on ties.

    With `unit_norm`, latents and rows have length one before they are compared and z is the row at length one.
    """

    entry_points = ("nearest",)
    codebook: Tensor  # [vocab, dim], a parameter or a buffer
    unit_norm: bool

    def latents(self, h: Tensor) -> Tensor:
        return self.scaled(h)

    def scaled(self, vectors: Tensor) -> Tensor:
        """Latents or rows [..., dim] at length one, where that is asked for."""
        return F.normalize(vectors, dim=-1) if self.unit_norm else vectors

    def rows(self) -> Tensor:
        """The code vectors [vocab, dim] in float32; a copy, for the codebook may change before a backward pass."""
        return self.scaled(self.codebook.float().clone())

    def assign(self, latents: Tensor, rows: Tensor, draws: Draws | None = None) -> Tensor:
        """Ids [B, N] of the nearest of `rows` to latents [B, N, dim]."""
        return nearest_centres(latents.flatten(0, 1), rows).unflatten(0, latents.shape[:2])

    @torch.no_grad()
    def nearest(self, h: Tensor) -> Tensor:
        """Ids [B, N] of the rows nearest to h [B, N, dim]."""
        with full_precision(h):
            return self.assign(self.latents(h.float()), self.rows())

    def lookup(self, ids: Tensor) -> Tensor:
        return self.scaled(F.embedding(ids, self.codebook).float()).to(self.codebook.dtype)

    def global_batch(self, latents: Tensor, draws: Draws) -> int:
        """Images of a global batch, each counted as often as it comes here."""
        return self.calls * (draws.batch or len(latents) * world_size())


class Composite(Quantizer):
    """Quantisers of one kind put together: ids [B, N, codebooks], terms that are means over the parts.

    With `shared`, all of them are one and the same module.
    """

    def __init__(self, bottleneck: Node, codebooks: Count, shared: bool = False):
        super().__init__()
        distinct = 1 if shared else codebooks
        self.parts = nn.ModuleList(components.build("bottlenecks", bottleneck) for _ in range(distinct))
        if not isinstance(self.parts[0], Quantizer):
            lacks = "takes no nearest vector" if self.parts[0].vocab else "has no ids"
            raise ValueError(f"only quantisers can be put together; {bottleneck['kind']} {lacks}")
        if self.parts[0].tokens is not None:
            raise ValueError(f"{bottleneck['kind']} reads a whole map, and only quantisers of tokens are put together")
        self.repeats = codebooks // distinct
        for module in self.parts.modules():
            if isinstance(module, Quantizer):
                module.calls = module.calls * self.repeats
        self.vocab, self.codebooks = self.parts[0].vocab, codebooks * self.parts[0].codebooks

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        part, values = components.check("bottlenecks", arguments.bottleneck)
        return part.terms(values)

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        part, values = components.check("bottlenecks", arguments.bottleneck)
        return part.batch_statistics(values)

    def parts_in_order(self) -> list[Quantizer]:
        """The parts in order, a shared one as often as it is called."""
        return list(self.parts) * self.repeats

    def draws_of(self, number: int, draws: Draws | None) -> Draws | None:
        return None if draws is None else PartDraws(draws, f"codebook_{number}")

    def latents_of_parts(self, latents: Tensor, ids: list[Tensor]) -> list[Tensor]:
        """The latents that each part quantised to its ids, of the latents [B, N, dim] of the whole."""
        raise ValueError(f"the parts of {type(self).__name__} have no latents of their own; set neighbours=codeword")

    def redraw_ids(
        self, ids: Tensor, rate: float | Tensor, count: int, draws: Draws, latents: Tensor | None = None
    ) -> Tensor:
        ids_of_parts = self.split_ids(ids)
        points = [None] * len(ids_of_parts) if latents is None else self.latents_of_parts(latents, ids_of_parts)
        parts = enumerate(zip(self.parts_in_order(), ids_of_parts, points))
        redrawn = [part.redraw_ids(old, rate, count, self.draws_of(k, draws), at) for k, (part, old, at) in parts]
        return plain_ids(torch.cat([stack_ids(new) for new in redrawn], dim=-1))

    def join_codes(self, outputs: list[tuple[Code, dict[str, Tensor]]]) -> tuple[Tensor, dict[str, Tensor]]:
        """The parts' ids in a row, and their terms' means."""
        ids = torch.cat([stack_ids(code.ids) for code, _ in outputs], dim=-1)
        terms = {name: torch.stack([terms[name] for _, terms in outputs]).mean() for name in outputs[0][1]}
        return plain_ids(ids), terms

    def split_ids(self, ids: Tensor) -> list[Tensor]:
        """Every part's ids of those of the whole, the inverse of `join_codes`."""
        return [plain_ids(ids_of_part) for ids_of_part in stack_ids(ids).chunk(len(self.parts_in_order()), dim=-1)]


class SideBySide(Composite):
    """Quantisers that each read and write channels of their own."""

    def __init__(self, bottleneck: Node, codebooks: Count):
        super().__init__(bottleneck, codebooks)
        self.inputs = sum(part.inputs for part in self.parts)
        self.dim = sum(part.dim for part in self.parts)
        self.split = tuple(part.dim for part in self.parts)

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


def build_token_quantizer(node: Node, what: str) -> Quantizer:
    """The quantiser of a node; ValueError, in which `what` is of its ids, unless it gives each token ids of its own."""
    quantizer = components.build("bottlenecks", node)
    if not isinstance(quantizer, Quantizer) or quantizer.tokens is not None:
        raise ValueError(f"{what} are of tokens with ids of their own, which {node['kind']} does not make")
    return quantizer


def draw_ranks(ids: Tensor, rate: float | Tensor, count: int, draws: Draws) -> Tensor:
    """Which of its `count` nearest codes each of ids [B, N] becomes, from 0 for itself, [B, N] int64."""
    anew = draws.uniform("redrawn", tuple(ids.shape[1:])).to(ids.device) < rate
    drawn = (draws.uniform("rank", tuple(ids.shape[1:])).to(ids.device) * count).long()
    return torch.where(anew, drawn.clamp_max(count - 1), 0)


def nearest_of_rank(points: Tensor, ids: Tensor, rank: Tensor, rows: Tensor, count: int) -> Tensor:
    """The id [T] that is number `rank` [T], below `count`, among `rows` [K, C] by distance from points [T, C].

    Number 0 is that of `ids` [T], however far away it is.
    """
    apart = distances(points, rows).scatter_(1, ids[:, None], -math.inf)
    return apart.topk(count, dim=1, largest=False).indices.gather(1, rank[:, None])[:, 0]
