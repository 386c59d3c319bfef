"""Statistics of a set of images, gathered over any number of processes: moments of all, rows of some."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.features.moments import Moments
from pipeline.features.passes import PerImage, process_batches
from pipeline.features.running_score import RunningScore


@dataclass
class ImageStatistics:
    """Its memory grows with the rows that are kept, not with the number of images."""

    count: int = 0
    rows: PerImage = field(default_factory=dict)  # of the images that were chosen, a row each, under every name
    moments: dict[str, Moments] = field(default_factory=dict)  # of all images, by name
    score: RunningScore = field(default_factory=RunningScore)  # of all images, where there are logits


def gather_statistics(
    accelerator: Accelerator,
    count: int,
    measure: Callable[[Tensor], PerImage],
    chosen: Tensor,
    moments: Sequence[str] = (),
    logits: str | None = None,
    batch: int = 64,
) -> ImageStatistics:
    """Of images 0 .. count - 1, whose rows `measure` gives for indices [B]; every process does a part, and has all.

    Kept are the rows of the `chosen` images, indices in rising order; the moments of all under the names `moments`; and
    the inception score of those under the name `logits`, which are not kept themselves.
    """
    keep = torch.zeros(count, dtype=torch.bool)
    keep[chosen] = True
    statistics, kept = ImageStatistics(), []
    for indices in process_batches(accelerator, count, batch):
        statistics.count += len(indices)
        rows = {name: values.cpu() for name, values in measure(indices).items()}
        for name in moments:
            statistics.moments.setdefault(name, Moments(rows[name].shape[1])).update(rows[name])
        if logits in rows:
            statistics.score.update(indices, rows.pop(logits))
        if keep[indices].any():
            kept.append({name: values[keep[indices]] for name, values in rows.items()})
    parts = gather_object([(statistics, kept)]) if accelerator.num_processes > 1 else [(statistics, kept)]
    return merge_statistics([part for part, _ in parts], [rows for _, some in parts for rows in some])


def merge_statistics(parts: list[ImageStatistics], kept: list[PerImage]) -> ImageStatistics:
    """The statistics of the whole, merged in the order of processes."""
    whole = ImageStatistics(sum(part.count for part in parts))
    whole.rows = {name: torch.cat([rows[name] for rows in kept]) for name in kept[0]} if kept else {}
    for part in parts:
        whole.score.merge(part.score)
        for name, moments in part.moments.items():
            whole.moments.setdefault(name, Moments(len(moments.mean))).merge(moments)
    return whole
