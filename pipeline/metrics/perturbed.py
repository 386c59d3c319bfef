"""What pFID perturbs: how strongly, and how codes with ids, of bits and without ids each take it."""

from dataclasses import dataclass

import torch

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code, LatentSpec
from pipeline.draws import ImageDraws, mix

RATES = (0.9, 0.8, 0.7, 0.6, 0.5)
STRENGTHS = (0.0122, 0.0171, 0.0220)  # shares of the codes
NOISES = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Exchange:
    """Every id is, with probability `rate`, drawn evenly from the `strength` codes nearest to its own, itself too."""

    rate: float
    strength: int

    def __str__(self) -> str:
        return f"rate_{self.rate:g}_strength_{self.strength}"


@dataclass(frozen=True)
class Noise:
    """(1 - u) z + u e of z at unit scale, with normal e: what flow matching has at noise level u."""

    u: float

    def __str__(self) -> str:
        return f"noise_{self.u:g}"


def grid(spec: LatentSpec) -> list[Exchange | Noise]:
    """The ways over whose Fréchet distances pFID is the mean.

    With ids, the 5 x 3 of Qiu et al., arXiv:2509.12474: `RATES` and pools of 1.22, 1.71 and 2.20 % of the codes (200,
    280 and 360 of 16384; the paper's numbers for 1024 are of 10, 15 and 20, not of our 12, 18 and 23), 2 at least, and
    each size once. With several codebooks each stream is perturbed by itself, by its own size. Nearest means by the
    code vectors; of binary codes, by the bits that differ, with ties broken at random.

    Ours, for continuous codes, where there is no published one: the five noise levels `NOISES`.
    """
    if not spec.vocab:
        return [Noise(u) for u in NOISES]
    pools = sorted({max(2, round(share * spec.vocab)) for share in STRENGTHS})
    return [Exchange(rate, pool) for rate in RATES for pool in pools]


@torch.no_grad()
def as_perturbed(neck: Bottleneck, code: Code, way: Exchange | Noise, places: list[int], seed: int) -> Code:
    """`code` of B images, ids or z at unit scale, perturbed; image i as a function of (seed, way, places[i]) alone."""
    device = next((t.device for t in [*neck.parameters(), *neck.buffers()]), torch.device("cpu"))
    draws = ImageDraws.from_seeds([mix(seed, str(way), place) for place in places], device)
    if isinstance(way, Exchange):
        return Code(ids=neck.redrawn(code.ids.to(device), way.rate, way.strength, draws))
    z = code.z.to(device)
    return Code(z=(1 - way.u) * z + way.u * draws.normal("noise", tuple(z.shape[1:])))
