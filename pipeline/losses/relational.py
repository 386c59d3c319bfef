"""Codes that are alike, from place to place, as a vision model's features are, up to a margin."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pipeline.losses.base import Alignment
from pipeline.nn.feature_head import FeatureHead, HeadShape
from pipeline.nn.full_precision import full_precision
from pipeline.nn.latent_head import LatentHead
from pipeline.ranges import Count, Counts, Integer, NotNegative
from pipeline.teachers.base import ReadColours, Resize, Tap


class Relational(Alignment):
    """`relational`: the two terms of VA-VAE (Yao et al., arXiv:2501.01423, equations 3 to 5), means over places.

    z' = W z, a bias-free linear layer from the code, sampled, to the teacher's width. With f_i its feature at place i:
    `cosine_weight` relu(1 - cosine_margin - cos(z'_i, f_i)), a mean over places, and `matrix_weight`
    relu(|cos(z'_i, z'_j) - cos(f_i, f_j)| - matrix_margin), a mean over all pairs of places of an image. They are one
    term, for the published weight is balanced by their common gradient: state `balance` in the phase. The metrics
    `relational_cosine_<teacher>` and `relational_matrix_<teacher>` are the two parts. `teacher_resize` and
    `teacher_colours` say how images are brought to the teacher: VA-VAE's released code resamples them bilinearly and
    leaves their colours in [-1, 1].
    """

    terms = ("relational",)

    def __init__(
        self,
        extractor: Tap,
        dim: Count,
        grid: Counts,
        teacher: str = "auto",
        layer: Integer = -1,
        teacher_size: Count | Literal["grid"] | None = "grid",
        teacher_resize: Resize = "antialiased",
        teacher_colours: ReadColours = "normalised",
        block: Count | None = None,
        cosine_margin: NotNegative = 0.5,
        matrix_margin: NotNegative = 0.25,
        cosine_weight: NotNegative = 1.0,
        matrix_weight: NotNegative = 1.0,
    ):
        super().__init__(extractor, grid, block)
        net = FeatureHead(dim, extractor.width, grid, HeadShape(layers=1), bias=False)
        self.head = net if block is not None else LatentHead(net)
        self.margins, self.weights = (cosine_margin, matrix_margin), (cosine_weight, matrix_weight)

    def compare(self, tokens: Tensor, targets: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        z, f = F.normalize(tokens.float(), dim=-1), F.normalize(targets.float(), dim=-1)
        cosine = F.relu(1 - self.margins[0] - (z * f).sum(dim=-1)).mean()
        with full_precision(z):
            matrix = F.relu((z @ z.mT - f @ f.mT).abs() - self.margins[1]).mean()
        metrics = {"cosine": cosine.detach(), "matrix": matrix.detach()}
        self.metrics = {f"relational_{name}_{self.name}": value for name, value in metrics.items()}
        return {"relational": self.weights[0] * cosine + self.weights[1] * matrix}
