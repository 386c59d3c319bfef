"""Which images make up the batch of a step: a function of (seed, step, place), whatever the number of processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.draws import mix


class Readable(Protocol):
    """What a training reads: images, or codes."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, seeds: Tensor) -> Any:
        """Rows `indices` [B]; what is random about row i is a function of `seeds[i]` alone."""


@dataclass(frozen=True)
class Share:
    """One process's part of every global batch, cut into micro-batches."""

    batch: int  # images a step, over all processes
    accumulate: int = 1
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch % (self.accumulate * self.ranks):
            raise ValueError(
                f"loop.batch={self.batch} does not divide into {self.ranks} processes x {self.accumulate} micro-batches"
            )

    def places(self, micro: int) -> slice:
        """The places in the global batch of this process's micro-batch number `micro`."""
        size = self.batch // (self.accumulate * self.ranks)
        start = (micro * self.ranks + self.rank) * size
        return slice(start, start + size)


class Order:
    """Permutation after permutation of the data, cut into global batches without a remainder."""

    def __init__(self, length: int, batch: int, seed: int):
        if length < 1:
            raise ValueError("there is nothing to train on: the training split is empty")
        self.length, self.batch, self.seed = length, batch, seed
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))

    def indices(self, step: int) -> Tensor:
        """Rows of the global batch of `step`, [batch] int64."""
        positions = torch.arange(step * self.batch, (step + 1) * self.batch)
        epochs = positions // self.length
        parts = [self._permutation(e)[positions[epochs == e] % self.length] for e in epochs.unique().tolist()]
        return torch.cat(parts)

    def seeds(self, step: int) -> Tensor:
        """A seed for every place of the global batch, [batch] int64."""
        rng = np.random.Generator(np.random.Philox(mix(self.seed, step, "places")))
        return torch.from_numpy(rng.integers(0, 2**63 - 1, self.batch))

    def _permutation(self, epoch: int) -> Tensor:
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch, "order"))
            self._epoch = (epoch, torch.randperm(self.length, generator=generator))
        return self._epoch[1]


def batches(data: Readable, share: Share, seed: int, first: int, workers: int = 0) -> Iterator[Any]:
    """This process's micro-batches from step `first` on, for ever: accumulate of them a step."""
    order = Order(len(data), share.batch, seed)
    places = _Places(order, share, first)
    yield from DataLoader(_Rows(data), sampler=places, batch_size=None, num_workers=workers)


class _Rows(Dataset):
    def __init__(self, data: Readable):
        self.data = data

    def __getitem__(self, where: tuple[Tensor, Tensor]) -> Any:
        return self.data.batch(*where)


class _Places:
    def __init__(self, order: Order, share: Share, first: int):
        self.order, self.share, self.first = order, share, first

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = self.first
        while True:
            indices, seeds = self.order.indices(step), self.order.seeds(step)
            for micro in range(self.share.accumulate):
                places = self.share.places(micro)
                yield indices[places], seeds[places]
            step += 1
