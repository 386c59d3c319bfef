"""A random choice of latents from a batch that is split over processes and micro-batches."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.draws import Draws
from pipeline.nn.processes import gather_over_processes


def draw_candidates(latents: Tensor, draws: Draws, name: str, most: int) -> tuple[Tensor, Tensor]:
    """The `most` latents of [B, N, C] that draw the highest numbers: the numbers [k], falling, and latents [k, C]."""
    drawn = draws.uniform(name, tuple(latents.shape[1:2])).to(latents.device).flatten()
    scores, order = drawn.sort(descending=True, stable=True)
    return scores[:most], latents.flatten(0, 1)[order[:most]]


def choose_candidates(of_parts: list[tuple[Tensor, Tensor]], most: int) -> Tensor:
    """The best [`most`, C] of all processes' and micro-batches' candidates: the same however the batch is spread.

    Parts may have different numbers of them.
    """
    longest = max(len(scores) for scores, _ in of_parts)
    padded = [
        (F.pad(scores, (0, longest - len(scores)), value=-1.0), F.pad(latents, (0, 0, 0, longest - len(latents))))
        for scores, latents in of_parts
    ]
    scores, latents = (
        gather_over_processes(torch.stack(column)) for column in zip(*padded)
    )  # [processes, micro-batches, k, ...]
    scores, latents = scores.transpose(0, 1).flatten(), latents.transpose(0, 1).flatten(0, 2)  # in order of positions
    scores, latents = scores[scores >= 0], latents[scores >= 0]
    return latents[scores.argsort(descending=True, stable=True)[:most]]
