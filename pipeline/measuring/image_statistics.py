"""What is known of a set of images, gathered over any number of processes: moments of all, rows of some."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.measuring.evaluation import Rows, own_batches
from pipeline.metrics.frechet import Moments
from pipeline.metrics.inception_score import RunningScore


@dataclass
class ImageStatistics:
    """Its memory grows with the rows that are kept, not with the number of images."""

    count: int = 0
    rows: Rows = field(default_factory=dict)  # of the images that were chosen, a row each, under every name
    moments: dict[str, Moments] = field(default_factory=dict)  # of all images, by name
    score: RunningScore = field(default_factory=RunningScore)  # of all images, where there are logits


def gather_statistics(
    accelerator: Accelerator,
    count: int,
    measure: Callable[[Tensor], Rows],
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
    found, kept = ImageStatistics(), []
    for part in own_batches(accelerator, count, batch):
        found.count += len(part)
        rows = {name: values.cpu() for name, values in measure(part).items()}
        for name in moments:
            found.moments.setdefault(name, Moments(rows[name].shape[1])).update(rows[name])
        if logits in rows:
            found.score.update(part, rows.pop(logits))
        if keep[part].any():
            kept.append({name: values[keep[part]] for name, values in rows.items()})
    parts = gather_object([(found, kept)]) if accelerator.num_processes > 1 else [(found, kept)]
    return _joined([part for part, _ in parts], [rows for _, some in parts for rows in some])


def _joined(parts: list[ImageStatistics], kept: list[Rows]) -> ImageStatistics:
    """The statistics of the whole, merged in the order of processes."""
    whole = ImageStatistics(sum(part.count for part in parts))
    whole.rows = {name: torch.cat([rows[name] for rows in kept]) for name in kept[0]} if kept else {}
    for part in parts:
        whole.score.merge(part.score)
        for name, moments in part.moments.items():
            whole.moments.setdefault(name, Moments(len(moments.mean))).merge(moments)
    return whole
