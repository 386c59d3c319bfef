"""Every channel rounded to one of a few levels: a codebook that is a grid, and never learned."""

import math
from itertools import accumulate
from typing import Annotated

import torch
from torch import Tensor

from pipeline.bottlenecks.base import Quantizer
from pipeline.code import Code
from pipeline.draws import Draws
from pipeline.validation import Length, Range

MARGIN = 1e-3  # by which the bound stays inside the outermost levels' halves


class FiniteScalar(Quantizer):
    """Features h [B, N, channels] to z on a grid in [-1, 1], `levels[i]` values in channel i. No terms.

    Mentzer et al., arXiv:2309.15505, appendix A.1: with L levels, h is bounded by tanh(h + s) l - o, where
    l = (L - 1)(1 - 0.001) / 2, o = 1/2 and s = tan(o / l) for even L and both 0 for odd L (as published: tan, not
    artanh), rounded with a straight-through gradient, and divided by floor(L / 2). The id is a number of mixed radix,
    the first channel its lowest digit. The paper's grid of about 2^10 codes is [8, 5, 5, 5], that of 2^16
    [8, 8, 8, 5, 5, 5].
    """

    def __init__(self, levels: Annotated[list[Annotated[int, Range(2)]], Length(1)]):
        super().__init__()
        if math.prod(levels) >= 2**63:
            raise ValueError(f"levels {levels} give more than 2^63 codes, too many to number; give fewer channels")
        self.dim = self.inputs = len(levels)
        self.vocab = math.prod(levels)
        place_values = [1, *accumulate(levels[:-1], lambda a, b: a * b)]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("place_values", torch.tensor(place_values), persistent=False)  # what a step adds to the id
        self.register_buffer("halves", torch.tensor(levels) // 2 * 1.0, persistent=False)  # steps between -1 and 0

    def latents(self, h: Tensor) -> Tensor:
        """h bounded to where its levels are, unrounded, in units of z."""
        reach = (self.levels - 1) * (1 - MARGIN) / 2
        offset = 0.5 * (self.levels % 2 == 0)
        return (torch.tanh(h + torch.tan(offset / reach)) * reach - offset) / self.halves.float()

    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        ids = self.nearest_code(latents.detach())
        return Code(z=self.pass_gradient(self.lookup(ids).float(), latents), ids=ids), {}

    def nearest_code(self, z: Tensor) -> Tensor:
        """Ids [B, N] of the code vectors nearest to z [B, N, dim]."""
        digits = (torch.round(z * self.halves.float()) + self.halves).long()
        return (torch.minimum(digits.clamp_min(0), self.levels - 1) * self.place_values).sum(dim=-1)

    def lookup(self, ids: Tensor) -> Tensor:
        digits = ids[..., None] // self.place_values % self.levels
        return (digits - self.halves) / self.halves
