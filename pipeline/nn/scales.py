"""Maps that are sums of smaller ones: each level is brought to the full size, smoothed by its kernel, and added."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def shrink(maps: Tensor, side: int) -> Tensor:
    """Maps [B, C, h, w] at side x side positions, each the mean over its area; those of that size as they are."""
    return maps if maps.shape[-1] == side else F.interpolate(maps, (side, side), mode="area")


def enlarge(maps: Tensor, side: int) -> Tensor:
    """Maps [B, C, h, w] at side x side positions by bicubic interpolation; those of that size as they are."""
    return maps if maps.shape[-1] == side else F.interpolate(maps, (side, side), mode="bicubic")


def as_rows(maps: Tensor) -> Tensor:
    """Maps [B, C, s, s] as tokens [B, s * s, C], row by row."""
    return maps.flatten(2).mT


def as_map(rows: Tensor, side: int) -> Tensor:
    """Tokens [B, side * side, C], row by row, as a map [B, C, side, side]."""
    return rows.mT.unflatten(2, (side, side))


def nearest_kernels(levels: int, count: int) -> list[int]:
    """Which of `count` shared kernels each level has: that whose place in [0, 1] is nearest to the level's.

    As VAR's released weights need: the places are the centres of equal parts, but for four, which are farther apart.
    """
    margin = 1 / (3 if count == 4 else 2) / count
    ticks = np.linspace(margin, 1 - margin, count)
    return [int(np.argmin(np.abs(ticks - level / max(levels - 1, 1)))) for level in range(levels)]


class LevelTables(NamedTuple):
    """How a map is made of code vectors, level by level; all that a generator of levels needs of a bottleneck.

    Tian et al., arXiv:2404.02905, algorithms 1 and 2: total += phi_k(enlarge(level k)), where phi_k is a convolution of
    3x3 that holds the share of the map which passes unchanged. In float32.
    """

    sides: tuple[int, ...]  # of the levels, each a square map, in positions; the last is that of the map itself
    kernels: Tensor  # [levels, C, C, 3, 3]
    offsets: Tensor  # [levels, C]
    codebook: Tensor  # [codebooks, vocab, C]: a token's code vector is the sum of a row of each

    def rows(self, ids: Tensor) -> Tensor:
        """The code vectors [B, n, C] of ids [B, n, codebooks]."""
        return sum(F.embedding(ids[..., k], table.float()) for k, table in enumerate(self.codebook))

    def start(self, batch: int) -> Tensor:
        """The map [batch, C, s, s] before the first level: zeros."""
        return self.kernels.new_zeros(batch, self.kernels.shape[1], self.sides[-1], self.sides[-1]).float()

    def add(self, total: Tensor, rows: Tensor, level: int) -> Tensor:
        """The map [B, C, s, s] with a level's code vectors [B, n, C] added."""
        full = enlarge(as_map(rows.float(), self.sides[level]), self.sides[-1])
        return total + F.conv2d(full, self.kernels[level].float(), self.offsets[level].float(), padding=1)

    def reduce(self, total: Tensor, level: int) -> Tensor:
        """The map so far [B, C, s, s] at the size of a level, as tokens [B, n, C]: what the level is predicted from."""
        return as_rows(shrink(total, self.sides[level]))

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Tokens [B, N, C] of all levels as those of each."""
        return rows.split([side * side for side in self.sides], dim=1)

    def merge(self, rows: Tensor) -> Tensor:
        """The map [B, C, s, s] of the code vectors [B, N, C] of all levels."""
        total = self.start(len(rows))
        for level, part in enumerate(self.split(rows)):
            total = self.add(total, part, level)
        return total

    def inputs(self, rows: Tensor) -> Tensor:
        """What all levels but the first are predicted from, [B, N - n_1, C], given the code vectors [B, N, C]."""
        total, inputs = self.start(len(rows)), []
        for level, part in enumerate(self.split(rows)[:-1]):
            total = self.add(total, part, level)
            inputs.append(self.reduce(total, level + 1))
        return torch.cat(inputs, dim=1) if inputs else rows[:, :0].float()
