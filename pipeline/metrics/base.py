"""What metrics share: distances between rows of features, and what every extractor of features promises."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class Features(ABC):
    """A named way from images to rows; numbers on it bear its name (`fd_classifier`)."""

    name: str
    logits: str | None = None  # the name under which `see` gives class logits, where it does

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a number on these features depends on: weights and their sha256, resize rule, width."""

    @abstractmethod
    def extract(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] to rows [B, D] in float32."""

    def see(self, images: Tensor) -> dict[str, Tensor]:
        """All rows that one pass over images gives, by name; `extract`'s under the features' own."""
        return {self.name: self.extract(images)}

    def statistics(self) -> dict[str, dict[str, Any]]:
        """The rows of `see` whose Fréchet distance is measured, described as by `describe`."""
        return {self.name: self.describe()}


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances of all pairs [m, n], in float64 and by differences: equal rows are exactly 0 apart."""
    return torch.cdist(first.double(), second.double(), compute_mode="donot_use_mm_for_euclid_dist")


def blocks(first: Tensor, second: Tensor, rows: int = 1024) -> Iterator[Tensor]:
    """The distances of all pairs, some rows of `first` at a time: [rows, n]."""
    return (distances(part, second) for part in first.split(rows))


def radii(rows: Tensor, neighbours: int) -> Tensor:
    """[n]: each row's distance to its `neighbours`-th nearest other one; ValueError where there are too few."""
    if len(rows) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {len(rows)} rows; evaluate more images")
    # the nearest row of its own set is the row itself, hence the one more
    return torch.cat([part.kthvalue(neighbours + 1, dim=1).values for part in blocks(rows, rows)])
