"""A projection of maps with attention between their positions, as in VFM-VAE's bottleneck."""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.blocks import SelfAttention

HEAD_WIDTH = 64  # inferred


class AttentionProjection(nn.Module):
    """Maps [B, inputs, h, w] to [B, outputs, h, w]: attention beside a linear skip, then a GeGLU of twice the width.

    h = skip(x) + attention(norm1(enter(x))), then h + down(gelu(a) b) with a and b linear in norm2(h). VFM-VAE,
    arXiv:2510.18457. Inferred: the positions of the norms, and that attention works at the width of the outputs.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.skip = nn.Linear(inputs, outputs)
        self.enter = nn.Linear(inputs, outputs)
        self.norm1 = nn.LayerNorm(outputs)
        self.attention = SelfAttention(outputs, outputs // HEAD_WIDTH if outputs % HEAD_WIDTH == 0 else 1)
        self.norm2 = nn.LayerNorm(outputs)
        self.up = nn.Linear(outputs, 4 * outputs)
        self.down = nn.Linear(2 * outputs, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        x = maps.flatten(2).mT
        h = self.skip(x) + self.attention(self.norm1(self.enter(x)))
        gate, value = self.up(self.norm2(h)).chunk(2, dim=-1)
        return (h + self.down(F.gelu(gate) * value)).mT.unflatten(2, maps.shape[2:])
