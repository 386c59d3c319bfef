"""Token dropping in training: which positions of a grid are kept, and their tokens back at their positions."""

import math

import torch
from torch import Tensor

from pipeline.draws import Draws


def draw_kept_positions(draws: Draws, positions: int, low: float, high: float) -> Tensor:
    """Which of so many `positions` are kept, [B, K] int64 ascending.

    K = ceil(positions (1 - fraction)), at least 1, with one fraction max(0, U(low, high)) for the global batch, as in
    MAETok and RecTok (arXiv:2512.13421, section 3); the positions are drawn for every image.
    """
    fraction = max(0.0, low + (high - low) * float(draws.uniform_of_all("token_drop.share")[0]))
    count = max(1, math.ceil(positions * (1 - fraction)))
    order = draws.uniform("token_drop.order", (positions,)).argsort(dim=1)
    return order[:, :count].sort(dim=1).values


def scatter_tokens(rows: Tensor, kept: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Rows [B, K, C] at their positions `kept` [B, K]: [B, positions, C], 0 elsewhere, and a bool mask of them."""
    full = rows.new_zeros(len(rows), positions, rows.shape[2])
    full = full.scatter(1, kept[..., None].expand_as(rows), rows)
    present = torch.zeros(full.shape[:2], dtype=torch.bool, device=rows.device)
    return full, present.scatter(1, kept, True)
