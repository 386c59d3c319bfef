"""A block of a vision transformer with dropout wherever torchvision's has it, its masks an argument."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from pipeline.draws import Draws
from pipeline.nn.dropout import apply_dropout
from pipeline.nn.vision_transformer import PreNormBlock


class DropMasks(NamedTuple):
    """Dropout's masks of one block, bool tensors; None keeps all."""

    weights: Tensor | None = None  # of attention, [B, heads, N, N]
    attention: Tensor | None = None  # [B, N, width]
    hidden: Tensor | None = None  # between the linear layers, [B, N, hidden]
    feed_forward: Tensor | None = None  # [B, N, width]


NO_MASKS = DropMasks()


class DroppingBlock(PreNormBlock):
    """A `PreNormBlock` that drops attention weights, both branches' outputs and hidden channels, all at `rate`."""

    def __init__(self, width: int, heads: int, rate: float, hidden: int | None = None, epsilon: float = 1e-5):
        super().__init__(width, heads, hidden, epsilon)
        self.rate = rate

    def draw_masks(self, draws: Draws | None, tokens: int, name: str) -> DropMasks:
        """Those of one step, drawn outside `forward`, which so stays a function of tensors."""
        if draws is None or not self.rate:
            return NO_MASKS
        width, hidden = self.down.out_features, self.down.in_features
        shapes = {
            "weights": (self.attention.heads, tokens, tokens),
            "attention": (tokens, width),
            "hidden": (tokens, hidden),
            "feed_forward": (tokens, width),
        }
        return DropMasks(**{part: draws.keep_mask(f"{name}.{part}", shapes[part], self.rate) for part in shapes})

    def forward(self, x: Tensor, masks: DropMasks = NO_MASKS) -> Tensor:
        mixed = self.attention(self.norm1(x), kept=masks.weights, rate=self.rate)
        x = x + apply_dropout(mixed, masks.attention, self.rate)
        h = apply_dropout(F.gelu(self.up(self.norm2(x))), masks.hidden, self.rate)
        return x + apply_dropout(self.down(h), masks.feed_forward, self.rate)
