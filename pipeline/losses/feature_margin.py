"""Places of a map inside the tokenizer like a vision model's features, up to a margin."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pipeline.losses.base import Alignment
from pipeline.nn.feature_head import FeatureHead, HeadShape
from pipeline.ranges import Count, Counts, Integer, NotNegative
from pipeline.teachers.base import Resize, Tap


class FeatureMargin(Alignment):
    """`feature_margin`: relu(1 - margin - cos(W x_i, f_i)), a mean over places i of images.

    x is the output of the tokenizer's module `at`, W a linear layer without bias that is trained with the tokenizer, f
    the teacher's features. ResTok (arXiv:2601.03955): x are the states of the decoder's second pass,
    `at: decoder.feature_map`, and the teacher is DINOv3-L, with weight 1. The metric `margin_cosine_<teacher>` is the
    mean cosine.
    """

    terms = ("feature_margin",)

    def __init__(
        self,
        extractor: Tap,
        dim: Count,
        grid: Counts,
        at: str,
        teacher: str = "auto",
        layer: Integer = -1,
        teacher_size: Count | Literal["grid"] | None = "grid",
        teacher_resize: Resize = "antialiased",
        margin: NotNegative = 0.25,
    ):
        super().__init__(extractor, grid, at=at)
        self.head = FeatureHead(dim, extractor.width, grid, HeadShape(layers=1), bias=False)
        self.margin = margin

    def compare(self, tokens: Tensor, targets: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        cosine = F.cosine_similarity(tokens.float(), targets.float(), dim=-1)  # [B, N]
        self.metrics = {f"margin_cosine_{self.name}": cosine.detach().mean()}
        return {"feature_margin": F.relu(1 - self.margin - cosine).mean()}
