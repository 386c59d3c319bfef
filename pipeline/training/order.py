"""Which rows make up the batch of a step: a function of (seed, step, position), whatever the number of processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.draws import mix
from pipeline.images.ahead import read_ahead


class TrainingData(Protocol):
    """What a training reads: images, or codes."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, seeds: Tensor) -> Any:
        """Rows `indices` [B]; what is random about row i is a function of `seeds[i]` alone."""


@dataclass(frozen=True)
class MicroBatches:
    """How global batches are divided into processes, and each process's part into micro-batches."""

    batch: int  # images per step, over all processes
    accumulate: int = 1
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch % (self.accumulate * self.ranks):
            raise ValueError(
                f"loop.batch={self.batch} does not divide into {self.ranks} processes x {self.accumulate} micro-batches"
            )

    def positions(self, number: int) -> slice:
        """Positions in the global batch of this process's micro-batch `number`."""
        size = self.batch // (self.accumulate * self.ranks)
        start = (number * self.ranks + self.rank) * size
        return slice(start, start + size)


class BatchOrder:
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
        rows = [self._permutation(e)[positions[epochs == e] % self.length] for e in epochs.unique().tolist()]
        return torch.cat(rows)

    def seeds(self, step: int) -> Tensor:
        """A seed for every position of the global batch, [batch] int64."""
        rng = np.random.Generator(np.random.Philox(mix(self.seed, step, "places")))
        return torch.from_numpy(rng.integers(0, 2**63 - 1, self.batch))

    def _permutation(self, epoch: int) -> Tensor:
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch, "order"))
            self._epoch = (epoch, torch.randperm(self.length, generator=generator))
        return self._epoch[1]


def batches(
    data: TrainingData, micro_batches: MicroBatches, seed: int, first: int, workers: int = 0, pinned: bool = False
) -> Iterator[Any]:
    """This process's micro-batches from step `first` on, without end: `accumulate` of them per step."""
    order = BatchOrder(len(data), micro_batches.batch, seed)
    return read_ahead(_Rows(data), _Sampler(order, micro_batches, first), workers, pinned)


@dataclass(frozen=True)
class _Rows:
    data: TrainingData

    def __call__(self, key: tuple[Tensor, Tensor]) -> Any:
        return self.data.batch(*key)


class _Sampler:
    """Indices and seeds of this process's micro-batches, in order."""

    def __init__(self, order: BatchOrder, micro_batches: MicroBatches, first: int):
        self.order, self.micro_batches, self.first = order, micro_batches, first

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = self.first
        while True:
            indices, seeds = self.order.indices(step), self.order.seeds(step)
            for number in range(self.micro_batches.accumulate):
                positions = self.micro_batches.positions(number)
                yield indices[positions], seeds[positions]
            step += 1
