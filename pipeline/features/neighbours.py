"""Nearest neighbours among rows of features, in blocks: exact as differences in float64, fast as products.

Squared distances of all pairs come of matrix products in float64, some rows at a time, so that no matrix of all pairs
is ever whole. What they leave open (which of two nearly equal distances is smaller, or whether a row lies on the rim of
a ball) is decided by the differences of the few pairs in question. Rows may lie on any device that has float64.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.nn.devices import computes_in

BLOCK = 2**24  # bytes of the distances in a block, in float64; about six such are alive at once
DIFFERENCES = 2**23  # bytes of the differences that are taken at once; about three such are
FLOAT64 = 8  # bytes
SLACK = 1e-11  # error of a squared distance by products, of the squared lengths of its two rows, with a margin
SPARE = 4  # candidates beyond those asked for


def exact(first: Tensor, second: Tensor, at: Tensor, to: Tensor) -> Tensor:
    """Euclidean distances [p] of the rows `at` of the first [m, D] and `to` [p] of the second [n, D].

    They are in float64 and by differences: equal rows are 0 apart.
    """
    step = rows_of(DIFFERENCES, first.shape[1])
    parts = zip(at.split(step), to.split(step))
    return torch.cat([(first[a].double() - second[b].double()).square().sum(dim=1).sqrt() for a, b in parts])


def squared_lengths(rows: Tensor) -> Tensor:
    """[n] of rows [n, D], some rows at a time."""
    return torch.cat([part.square().sum(dim=1) for part in rows.split(rows_of(DIFFERENCES, rows.shape[1]))])


def rows_of(size: int, width: int) -> int:
    """How many rows of so many float64 fit into `size` bytes; 1 or more."""
    return max(1, size // (FLOAT64 * max(1, width)))


class Pairs:
    """Squared distances of the rows [m, D] of one set and [n, D] of another, a block of the first at a time."""

    def __init__(self, first: Tensor, second: Tensor):
        self.first, self.second = first, second
        self.centre = second.mean(dim=0, dtype=torch.float64)  # lengths are from there, for smaller rounding errors
        self.others = second.to(torch.float64, copy=True).sub_(self.centre)
        self.lengths = squared_lengths(self.others)

    def blocks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The number of the first row, squared distances [rows, n], and how far each of them may be off."""
        step, start = rows_of(BLOCK, len(self.second)), 0
        for block in self.first.split(step):
            rows = block.double() - self.centre
            lengths = squared_lengths(rows)[:, None] + self.lengths
            yield start, torch.addmm(lengths, rows, self.others.T, alpha=-2), SLACK * lengths
            start += len(block)


def nearest(rows: Tensor, among: Tensor, count: int) -> Tensor:
    """Distances [m, count] of each row [m, D] to the nearest of the rows [n, D], in rising order."""
    found = []
    for start, squares, _ in Pairs(rows, among).blocks():
        candidates = squares.topk(min(count + SPARE, len(among)), dim=1, largest=False).indices
        mine = torch.arange(start, start + len(squares), device=rows.device)
        places = mine.repeat_interleave(candidates.shape[1])
        distances = exact(rows, among, places, candidates.flatten()).view(candidates.shape)
        found.append(distances.sort(dim=1).values[:, :count])
    return torch.cat(found)


def radii(rows: Tensor, neighbours: int) -> Tensor:
    """[n]: each row's distance to its `neighbours`-th nearest other one; ValueError where there are too few."""
    if len(rows) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {len(rows)} rows; evaluate more images")
    return nearest(rows, rows, neighbours + 1)[:, -1]  # the nearest row of its own set is the row itself


def inside(points: Tensor, centres: Tensor, reach: Tensor, rim: bool) -> Iterator[Tensor]:
    """Whether points [m, D] lie in the balls of radii `reach` [n] round the centres [n, D], in blocks [rows, n].

    With `rim` a ball has those that lie exactly on it, too.
    """
    for start, squares, slack in Pairs(points, centres).blocks():
        apart = squares - reach.square()
        within = apart < 0
        row, column = (apart.abs() <= slack).nonzero(as_tuple=True)
        distances, radius = exact(points, centres, start + row, column), reach[column]
        within[row, column] = distances <= radius if rim else distances < radius
        yield within


def on_device(rows: Tensor, device: torch.device) -> Tensor:
    """Rows on a device; on the CPU where that has no float64."""
    return rows.to(device) if computes_in(device, torch.float64) else rows.cpu()
