"""A row of tokens in two segments, each with a codebook of its own."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import components
from pipeline.bottlenecks.base import Quantizer, Segment
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.draws import Draws, PartDraws
from pipeline.ranges import Count


class TwoSegments(Quantizer):
    """The `first_tokens` tokens of a row to ids by the quantiser `first`, all others by `second`.

    Hita (Zheng et al., arXiv:2507.02358) quantises its holistic tokens and its patches so. Both have as many codes, so
    that an id means something in either segment, and a generator of rows of ids needs to know nothing of segments.
    Features and code vectors are as wide as those of the wider quantiser; the other reads, and fills, the first
    channels. Terms are the sums over both, as in Hita's code.

    Raises ValueError for quantisers with different numbers of codes, and for features that leave nothing for `second`.
    """

    def __init__(self, first: Node, second: Node, first_tokens: Count):
        super().__init__()
        self.parts = nn.ModuleList(components.build("bottlenecks", node) for node in (first, second))
        for part, node in zip(self.parts, (first, second)):
            if not isinstance(part, Quantizer) or part.tokens is not None or part.segments:
                raise ValueError(f"segments are of tokens with ids of their own, which {node['kind']} does not make")
        sizes = [(part.vocab, part.codebooks) for part in self.parts]
        if sizes[0] != sizes[1]:
            codes = " and ".join(f"{codebooks} x {vocab}" for vocab, codebooks in sizes)
            raise ValueError(f"the segments of a row have {codes} codes; give both as many")
        self.vocab, self.codebooks = sizes[0]
        counts = (first_tokens, None)
        self.segments = tuple(Segment(count, part.inputs, part.dim) for count, part in zip(counts, self.parts))
        self.inputs, self.dim = max(part.inputs for part in self.parts), max(part.dim for part in self.parts)
        self.first_tokens = first_tokens

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return union(arguments, lambda part, values: part.terms(values))

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        return union(arguments, lambda part, values: part.batch_statistics(values))

    def spec(self, grid: Sequence[int]) -> LatentSpec:
        if len(grid) != 1 or grid[0] <= self.first_tokens:
            raise ValueError(
                f"two_segments is for rows of more than first_tokens, {self.first_tokens}, tokens, not for a grid of"
                f" {'x'.join(map(str, grid))}; take the tokenizer hita, or another bottleneck"
            )
        segments = ((self.first_tokens,), (grid[0] - self.first_tokens,))
        return LatentSpec(tuple(grid), self.dim, self.vocab, self.codebooks, segments=segments)

    def begin(self, latents: Tensor, draws: Draws | None) -> None:
        for number, (part, points) in enumerate(zip(self.parts, self.split(latents, "dim"))):
            part.begin(points, self.draws_of(number, draws))

    def latents(self, h: Tensor) -> Tensor:
        return self.join([part.latents(features) for part, features in zip(self.parts, self.split(h, "inputs"))])

    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        if latents.shape[1] <= self.first_tokens:
            raise ValueError(
                f"{latents.shape[1]} features are no row of {self.first_tokens} tokens and some of a second segment"
            )
        parts = enumerate(zip(self.parts, self.split(latents, "dim")))
        outputs = [part.quantize(points, self.draws_of(number, draws)) for number, (part, points) in parts]
        codes, terms = [code for code, _ in outputs], {}
        for _, of_part in outputs:
            terms |= {name: terms[name] + value if name in terms else value for name, value in of_part.items()}
        return Code(self.join([code.z for code in codes]), torch.cat([code.ids for code in codes], dim=1)), terms

    def pass_gradient(self, value: Tensor, latents: Tensor) -> Tensor:
        pairs = zip(self.parts, self.split(value, "dim"), self.split(latents, "dim"))
        return self.join([part.pass_gradient(*pair) for part, *pair in pairs])

    def lookup(self, ids: Tensor) -> Tensor:
        """As in the base; of the first tokens of a row, too."""
        rows = ids[:, : self.first_tokens], ids[:, self.first_tokens :]
        return self.join([part.lookup(ids_of_part) for part, ids_of_part in zip(self.parts, rows)])

    def redraw_ids(
        self, ids: Tensor, rate: float | Tensor, count: int, draws: Draws, latents: Tensor | None = None
    ) -> Tensor:
        rows = ids[:, : self.first_tokens], ids[:, self.first_tokens :]
        points = [None, None] if latents is None else self.split(latents, "dim")
        parts = enumerate(zip(self.parts, rows, points))
        redrawn = [part.redraw_ids(old, rate, count, self.draws_of(k, draws), at) for k, (part, old, at) in parts]
        return torch.cat(redrawn, dim=1)

    def split(self, rows: Tensor, channels: str) -> list[Tensor]:
        """Rows [B, N, C] of the segments, each with so many channels as its quantiser has `inputs`, or `dim`."""
        halves = rows[:, : self.first_tokens], rows[:, self.first_tokens :]
        return [half[..., : getattr(part, channels)] for half, part in zip(halves, self.parts)]

    def join(self, rows: list[Tensor]) -> Tensor:
        """Rows [B, n, dim] of the segments as those of the whole, with zeros in the channels that one lacks."""
        return torch.cat([F.pad(part, (0, self.dim - part.shape[-1])) for part in rows], dim=1)

    def draws_of(self, number: int, draws: Draws | None) -> Draws | None:
        return None if draws is None else PartDraws(draws, f"segment_{number}")


def union(arguments: Arguments, names_of: Callable[[type, Arguments], tuple[str, ...]]) -> tuple[str, ...]:
    """The names that either quantiser has, in order, each once."""
    checked = [components.check("bottlenecks", arguments[name]) for name in ("first", "second")]
    return tuple(dict.fromkeys(name for part, values in checked for name in names_of(part, values)))
