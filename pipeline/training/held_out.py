"""The loss of held-out rows, and of rows that are trained on: by averaged weights, with the same draws at all times."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.draws import StepDraws, mix
from pipeline.features.passes import evenly_spaced
from pipeline.recipes.arithmetic import Precision
from pipeline.runs.precision import autocast
from pipeline.training.task import Task

ROWS = 128  # measured at most, evenly through a set
CHUNK = 16  # rows of one pass


class Rows(Protocol):
    """What can be measured: images, codes or pairs."""

    def __len__(self) -> int: ...

    def plain(self, indices: torch.Tensor) -> Any:
        """Rows `indices` [B] as they are, without augmentation."""


@dataclass(frozen=True)
class Measuring:
    """How losses are measured; the same at every step, so that their course is that of the weights alone."""

    task: Task
    last_step: int  # of which the draws are
    seed: int
    accelerator: Accelerator
    precision: Precision

    @torch.no_grad()
    def terms(self, averages: Mapping[str, nn.Module], rows: Rows) -> dict[str, float]:
        """The task's `held_out_terms`, means over `rows`; every process has to ask, and gets the same.

        Each measures all of them: a term may add up over processes, which then have to be at the same place.
        """
        accelerator, sums, count = self.accelerator, {}, 0
        for batch, draws in self.batches(rows):
            with autocast(accelerator.device, self.precision):
                terms = self.task.held_out_terms(averages, batch, draws)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + len(batch) * value.detach().float()
            count += len(batch)
        means = accelerator.reduce(torch.stack(list(sums.values())), "mean") / count
        return dict(zip(sums, means.tolist()))

    def batches(self, rows: Rows) -> Iterator[tuple[Any, StepDraws]]:
        device = self.accelerator.device
        chosen = evenly_spaced(None, len(rows), min(len(rows), ROWS))
        for first in range(0, len(chosen), CHUNK):
            places = slice(first, min(first + CHUNK, len(chosen)))
            draws = StepDraws(mix(self.seed, "held out"), self.last_step, places, len(chosen), device)
            yield rows.plain(chosen[places]).to(device), draws
