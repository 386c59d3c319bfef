"""Two codebooks with one index: a token's id is that of the pair of rows whose weighted distances add up to least."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.bottlenecks.base import CodebookQuantizer
from pipeline.draws import Draws
from pipeline.nn.clusters import cluster_sums, k_means, nearest_centres
from pipeline.nn.learned_rows import ROUNDS, LearnedRows
from pipeline.ranges import Count, FractionBelowOne, NotNegative, Positive
from pipeline.validation import Range, SettingError


class SharedIndex(LearnedRows, CodebookQuantizer):
    """TokenFlow (Qu et al., arXiv:2412.03069): features [B, N, semantic_dim + pixel_dim], semantic channels first.

    Row i of the semantic codebook belongs to row i of the pixel codebook, and a token's id is
    argmin_i semantic_weight |s - s_i|^2 + pixel_weight |p - p_i|^2, the first one on ties; there both weights are 1.
    With a weight of 0 the other half alone chooses, as in `vector_quantize`. `codebook`, [vocab, semantic_dim +
    pixel_dim], holds the rows of both; z is theirs. With `unit_norm` each half of a feature, and of a row, has length
    one.

    Everything else, and the terms, are those of `vector_quantize` over all channels together. ValueError where both
    weights are 0.
    """

    def __init__(
        self,
        semantic_dim: Count,
        pixel_dim: Count,
        vocab: Annotated[int, Range(2)],
        semantic_weight: NotNegative = 1.0,
        pixel_weight: NotNegative = 1.0,
        unit_norm: bool = True,
        learn: Literal["gradient", "ema"] = "gradient",
        decay: FractionBelowOne = 0.99,
        start: Literal["random", "kmeans"] = "random",
        restart: FractionBelowOne = 0.0,
        gradient: Literal["straight_through", "rotation"] = "straight_through",
        entropy_temperature: Positive | None = None,
    ):
        if not semantic_weight + pixel_weight:
            raise SettingError("pixel_weight", " is 0 as semantic_weight is, and nothing chooses an id; raise one")
        super().__init__()
        self.dim = self.inputs = semantic_dim + pixel_dim
        self.split, self.weights = (semantic_dim, pixel_dim), (semantic_weight, pixel_weight)
        self.vocab, self.unit_norm = vocab, unit_norm
        rows = torch.randn(vocab, self.dim)
        rows = self.scaled(rows) if unit_norm else rows / vocab
        self.begin_learning(rows, learn, decay, start, restart, gradient, entropy_temperature)

    def scaled(self, vectors: Tensor) -> Tensor:
        if not self.unit_norm:
            return vectors
        return torch.cat([F.normalize(half, dim=-1) for half in vectors.split(self.split, dim=-1)], dim=-1)

    def compared(self, vectors: Tensor) -> Tensor:
        halves = zip(vectors.split(self.split, dim=-1), self.weights)
        return torch.cat([weight**0.5 * half for half, weight in halves], dim=-1)

    def assign(self, latents: Tensor, rows: Tensor, draws: Draws | None = None) -> Tensor:
        return super().assign(self.compared(latents), self.compared(rows), draws)

    def logits(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        of_compared = super().logits(self.compared(rows))
        return lambda points: of_compared(self.compared(points))

    def find_centres(self, points: Tensor, rows: Tensor) -> Tensor:
        """As in the base: clusters of points as they are compared, and the mean of each of the points themselves."""
        compared = self.compared(points)
        ids = nearest_centres(compared, k_means(compared, self.compared(rows), ROUNDS))
        counts, sums = cluster_sums(points, ids, self.vocab)
        return torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], rows)
