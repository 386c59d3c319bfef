"""Features normalised token by token: a bounded code without a loss term."""

import torch.nn.functional as F
from torch import Tensor

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code
from pipeline.draws import Draws
from pipeline.nn.blocks import EPSILON
from pipeline.ranges import Count


class LayerNorm(Bottleneck):
    """z = (h - mean) / sqrt(var + 1e-6) over the channels of each token of h [B, N, dim]; no terms, no posterior.

    ViTok-v2's in place of a KL term, as in Na-VAE/vitok-release, without learned weights. Raises ValueError for one
    channel, of which nothing would be left.
    """

    def __init__(self, dim: Count):
        super().__init__()
        if dim < 2:
            raise ValueError(f"layer_norm: of {dim} channel nothing is left; set dim to 2 or more")
        self.dim = self.inputs = dim

    def forward(self, h: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        return Code(z=F.layer_norm(h.float(), (self.dim,), eps=EPSILON).to(h.dtype)), {}
