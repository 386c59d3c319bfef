"""Features as they are: the bottleneck of tokenizers whose encoder already gives the code."""

from torch import Tensor

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code
from pipeline.draws import Draws
from pipeline.ranges import Count


class Identity(Bottleneck):
    """z = h [B, N, dim]; no terms, no posterior."""

    def __init__(self, dim: Count):
        super().__init__()
        self.dim = self.inputs = dim

    def forward(self, h: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        return Code(z=h), {}
