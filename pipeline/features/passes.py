"""Passes over sets of images: which images are measured, and their rows, collected from every process."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

PerImage = dict[str, Tensor]  # one row per image under every name
BATCH = 64  # images that are read and measured at once, where a pass does not say


@dataclass(frozen=True)
class ImageRows:
    """What a pass knows of a batch of images, by how much of it can be kept where there are many."""

    narrow: PerImage = field(default_factory=dict)  # a few numbers each: kept of all images
    wide: PerImage = field(default_factory=dict)  # features: kept of some images
    summed: dict[str, Tensor] = field(default_factory=dict)  # rows, of some images or more, of which moments are kept
    logits: Tensor | None = None  # [B, classes], of which the inception score is kept

    def __or__(self, other: "ImageRows") -> "ImageRows":
        """What both know of the same images."""
        logits = self.logits if other.logits is None else other.logits
        return ImageRows(self.narrow | other.narrow, self.wide | other.wide, self.summed | other.summed, logits)


def collect_rows(
    accelerator: Accelerator, count: int, measure: Callable[[Tensor], PerImage], batch: int = BATCH
) -> PerImage:
    """The rows of images 0 .. count - 1, which `measure` returns for indices [B]; the processes divide the batches.

    Without images there are none, under no name.
    """
    batches = process_batches(accelerator, count, batch)
    parts = [{name: rows.cpu() for name, rows in measure(indices).items()} for indices in batches]
    parts = gather_object(parts) if accelerator.num_processes > 1 else parts
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def count(rows: PerImage) -> int:
    """The number of images that rows are of."""
    return len(next(iter(rows.values()), ()))


def process_batches(accelerator: Accelerator, count: int, batch: int = BATCH) -> list[Tensor]:
    """The batches of this process, out of those that divide indices 0 .. count - 1, each of `batch` but the last.

    The batches do not depend on the number of processes, so that networks round alike however many there are.
    """
    batches, processes = torch.arange(count).split(batch) if count else (), accelerator.num_processes
    first, last = (len(batches) * (accelerator.process_index + i) // processes for i in (0, 1))
    return list(batches[first:last])


def evenly_spaced(labels: Tensor | None, total: int, count: int) -> Tensor:
    """Indices [count] of `total` images, evenly spaced; with labels [total], evenly through every class.

    None of none.
    """
    order = torch.arange(total) if labels is None else labels.argsort(stable=True)
    positions = (torch.arange(count, dtype=torch.float64) + 0.5) * (total / max(1, count))
    return order[positions.long()].sort().values
