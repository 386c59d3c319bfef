"""Every channel becomes one bit: the id is the bits' number, and there is no codebook to learn."""

import math
from itertools import accumulate
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.bottlenecks.base import Quantizer, draw_ranks
from pipeline.code import Code
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.entropy import entropy_gap
from pipeline.ranges import Positive
from pipeline.validation import Range


class Binary(Quantizer):
    """Features h [B, N, bits] to their signs (0 counts as negative), the first channel the highest bit of the id.

    Lookup-free: z is +-1 (Yu et al., arXiv:2310.05737). `spherical`: h is brought to length one first and z is
    +-1 / sqrt(bits), of length one as well (Zhao et al., arXiv:2406.07548).

    Terms: `commit`, mean (h - z)^2; and, unless `entropy_temperature` is null, `entropy`: mean entropy of the tokens'
    distributions over the codes c, softmax(2 h . c / temperature), less the entropy of their mean. The bits of a token
    are independent in it, so that its entropy is a sum over groups of them; the entropy of the mean is computed over
    all codes of at most `group` bits and added up (the second paper, equation 12), exact for bits <= group. Published
    temperatures: 0.01 lookup-free; 1 spherical.
    """

    def __init__(
        self,
        bits: Annotated[int, Range(1, 62)],
        spherical: bool = False,
        entropy_temperature: Positive | None = 1.0,
        group: Annotated[int, Range(1, 20)] = 9,
    ):
        super().__init__()
        self.dim = self.inputs = bits
        self.vocab = 2**bits
        self.spherical, self.entropy_temperature, self.group = spherical, entropy_temperature, min(group, bits)
        size = bits**-0.5 if spherical else 1.0
        self.register_buffer("size", torch.tensor(size), persistent=False)  # |z| of each channel

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return ("commit",) if arguments.entropy_temperature is None else ("commit", "entropy")

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        return () if arguments.entropy_temperature is None else ("the entropy term",)

    def latents(self, h: Tensor) -> Tensor:
        return F.normalize(h, dim=-1) if self.spherical else h

    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        ids = self.nearest_code(latents)
        codes = self.signs(ids, self.dim) * self.size.float()
        terms = {"commit": F.mse_loss(latents, codes)}
        if self.entropy_temperature is not None:
            terms["entropy"] = sum(self.entropy(part) for part in latents.flatten(0, 1).split(self.group, dim=-1))
        return Code(z=self.pass_gradient(codes, latents), ids=ids), terms

    def entropy(self, bits: Tensor) -> Tensor:
        """The term for a group of channels [T, at most `group`]."""
        count = bits.shape[-1]
        codes = self.signs(torch.arange(2**count, device=bits.device), count) * self.size.float()
        return entropy_gap(bits, lambda points: 2 * points @ codes.T / self.entropy_temperature, 2**count)

    def nearest_code(self, z: Tensor) -> Tensor:
        """Ids [B, N] of the code vectors nearest to z [B, N, bits]."""
        return ((z > 0) << torch.arange(self.dim - 1, -1, -1, device=z.device)).sum(dim=-1)

    def lookup(self, ids: Tensor) -> Tensor:
        return self.signs(ids, self.dim).to(self.size.dtype) * self.size

    @torch.no_grad()
    def redraw_ids(
        self, ids: Tensor, rate: float | Tensor, count: int, draws: Draws, latents: Tensor | None = None
    ) -> Tensor:
        """As in the base. The codes nearest to a code differ from it in the fewest bits, and of those that differ in
        equally many any may be among the `count`: the rank says how many bits change, further draws say which. It
        needs no table of codes, whatever the number of bits.
        """
        if latents is not None:
            return super().redraw_ids(ids, rate, count, draws, latents)
        within = accumulate(math.comb(self.dim, changed) for changed in range(self.dim))  # codes at most so far away
        bounds = torch.tensor(list(within), device=ids.device)
        changes = torch.bucketize(draw_ranks(ids, rate, count, draws), bounds, right=True)
        order = draws.uniform("bits", (*ids.shape[1:], self.dim)).to(ids.device).argsort(dim=-1).argsort(dim=-1)
        shifts = torch.arange(self.dim, device=ids.device)
        return ids ^ ((order < changes[..., None]).long() << shifts).sum(dim=-1)

    @staticmethod
    def signs(ids: Tensor, count: int) -> Tensor:
        """The `count` bits of ids [...] as -1 and 1, [..., count]."""
        shifts = torch.arange(count - 1, -1, -1, device=ids.device)
        return (2 * (ids[..., None] >> shifts & 1) - 1).float()
