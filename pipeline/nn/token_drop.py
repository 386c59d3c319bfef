"""Leaving out places of a grid in training, and putting what was made of the others back where it belongs."""

import math

import torch
from torch import Tensor

from pipeline.draws import Draws


def draw_kept_positions(draws: Draws, places: int, low: float, high: float) -> Tensor:
    """Which of `places` stay, [B, K] int64 ascending.

    K = ceil(places (1 - share)) of one share for the global batch, max(0, U(low, high)), as in MAETok and RecTok
    (arXiv:2512.13421, section 3); which ones is drawn for every image. One or more are left.
    """
    share = max(0.0, low + (high - low) * float(draws.uniform_of_all("token_drop.share")[0]))
    count = max(1, math.ceil(places * (1 - share)))
    order = draws.uniform("token_drop.order", (places,)).argsort(dim=1)
    return order[:, :count].sort(dim=1).values


def scatter_tokens(rows: Tensor, kept: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Rows [B, K, C] of the places `kept` [B, K] among all, [B, places, C] with zeros elsewhere, and where, [B, places]
    bool."""
    full = rows.new_zeros(len(rows), places, rows.shape[2])
    full = full.scatter(1, kept[..., None].expand_as(rows), rows)
    present = torch.zeros(full.shape[:2], dtype=torch.bool, device=rows.device)
    return full, present.scatter(1, kept, True)
