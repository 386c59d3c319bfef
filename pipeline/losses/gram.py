"""Codes whose places are as alike one another as a vision model's features are."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pipeline.losses.base import Alignment
from pipeline.nn.full_precision import full_precision
from pipeline.ranges import Count, Counts, Integer
from pipeline.teachers.base import Tap


class Gram(Alignment):
    """`gram`: (cos(z_i, z_j) - cos(f_i, f_j))^2, a mean over all pairs of places of an image.

    The Gram matrices of unit vectors, as in DINOv3's anchoring (arXiv:2508.10104, section 4.2): of the code itself and
    of the teacher's features. The two may be of any widths, so that nothing is trained beside the code. The metric
    `gram_<teacher>` is the correlation of the two matrices' entries.
    """

    terms = ("gram",)

    def __init__(
        self,
        extractor: Tap,
        grid: Counts,
        teacher: str = "auto",
        layer: Integer = -1,
        teacher_size: Count | Literal["grid"] | None = "grid",
        block: Count | None = None,
    ):
        super().__init__(extractor, grid, block)

    def compare(self, tokens: Tensor, targets: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        z, f = F.normalize(tokens.float(), dim=-1), F.normalize(targets.float(), dim=-1)
        with full_precision(z):
            ours, theirs = z @ z.mT, f @ f.mT
        both = [(matrix.detach() - matrix.detach().mean()).flatten() for matrix in (ours, theirs)]
        self.metrics = {f"gram_{self.name}": F.cosine_similarity(*both, dim=0)}
        return {"gram": (ours - theirs).square().mean()}
