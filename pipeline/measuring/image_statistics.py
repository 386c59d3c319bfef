"""Statistics of a set of images, gathered over any number of processes in one pass that holds none of the images."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.features.moments import Moments
from pipeline.features.passes import BATCH, ImageRows, PerImage, process_batches
from pipeline.features.running_score import RunningScore

NUMBER = "number"  # under which `narrow` has the numbers of the images


@dataclass
class ImageStatistics:
    """Its memory grows with the images that were chosen, and by a few numbers with every other one."""

    count: int = 0
    narrow: PerImage = field(default_factory=dict)  # of all images, in rising order, and their numbers
    wide: PerImage = field(default_factory=dict)  # of the images that were chosen
    moments: dict[str, Moments] = field(default_factory=dict)  # of what was summed, by name
    score: RunningScore = field(default_factory=RunningScore)  # of all images, where there are logits


def gather_statistics(
    accelerator: Accelerator, count: int, measure: Callable[[Tensor], ImageRows], chosen: Tensor, batch: int = BATCH
) -> ImageStatistics:
    """Of images 0 .. count - 1, which `measure` is given by indices [B]; every process does a part, and has all.

    The wide rows of the `chosen` images are kept, indices in rising order, with their numbers.
    """
    keep = torch.zeros(count, dtype=torch.bool)
    keep[chosen] = True
    statistics, narrow, wide = ImageStatistics(), [], []
    for indices in process_batches(accelerator, count, batch):
        statistics.count += len(indices)
        rows = measure(indices)
        for name, values in rows.summed.items():
            statistics.moments.setdefault(name, Moments(values.shape[1])).update(values)
        if rows.logits is not None:
            statistics.score.update(indices, rows.logits)
        narrow.append({name: values.cpu() for name, values in rows.narrow.items()} | {NUMBER: indices})
        kept = keep[indices]
        if kept.any():
            wide.append({name: values.cpu()[kept] for name, values in rows.wide.items()} | {NUMBER: indices[kept]})
    parts = [(statistics, narrow, wide)]
    return merge_statistics(gather_object(parts) if accelerator.num_processes > 1 else parts)


def merge_statistics(parts: list[tuple[ImageStatistics, list[PerImage], list[PerImage]]]) -> ImageStatistics:
    """The statistics of the whole, merged in the order of processes, with the narrow and the wide rows of batches."""
    whole = ImageStatistics(sum(part.count for part, _, _ in parts))
    whole.narrow = joined([rows for _, narrow, _ in parts for rows in narrow])
    whole.wide = joined([rows for _, _, wide in parts for rows in wide])
    for part, _, _ in parts:
        whole.score.merge(part.score)
        for name, moments in part.moments.items():
            whole.moments.setdefault(name, Moments(len(moments.mean))).merge(moments)
    return whole


def joined(batches: list[PerImage]) -> PerImage:
    """The rows of batches as one; none of none."""
    return {name: torch.cat([rows[name] for rows in batches]) for name in (batches[0] if batches else ())}
