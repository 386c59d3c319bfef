"""Every token becomes the nearest row of a codebook."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.bottlenecks.base import CodebookQuantizer
from pipeline.draws import Draws
from pipeline.nn.clusters import distances
from pipeline.nn.entropy import tokens_at_once
from pipeline.nn.learned_rows import LearnedRows
from pipeline.ranges import Count, FractionBelowOne, NotNegative, Positive
from pipeline.samplers.choice import Choice
from pipeline.validation import Range


class VectorQuantize(LearnedRows, CodebookQuantizer):
    """Features h [B, N, dim] to the nearest of `vocab` rows, the first one on ties.

    van den Oord et al., arXiv:1711.00937. With `unit_norm`, latents and rows have length one before they are compared
    and z is the row at length one (Yu et al., arXiv:2110.04627); `by_angle` compares them so and leaves z the row as it
    is.

    The codebook learns by `gradient`, or by `ema`: each row is the running mean of the latents that took it, with
    `decay` and Laplace smoothing (appendix A.1 there). It starts at `random`, or at the centres that `kmeans` finds in
    the first batch. With `restart` above 0, a row whose running use falls below that fraction of the mean row's is
    placed at a latent of the batch. All of this happens in training alone, once a global batch and while the latents
    themselves are trained, alike in every process; the k-means sees the first micro-batch. `sampling_temperature`
    above 0 draws the row in training, from softmax(-|z - row|^2 / temperature).

    Terms, means per element: `vq` pulls the row to the latent (where it learns by gradient), `commit` the latent to
    its row (0.25 is a usual weight). With `entropy_temperature` also `entropy` (`pipeline.nn.entropy`) of
    softmax(-|z - row|^2 / temperature). The gradient of z goes `straight_through` to h, or by the `rotation` trick.
    """

    def __init__(
        self,
        dim: Count,
        vocab: Annotated[int, Range(2)],
        unit_norm: bool = True,
        learn: Literal["gradient", "ema"] = "gradient",
        decay: FractionBelowOne = 0.99,
        start: Literal["random", "kmeans"] = "random",
        restart: FractionBelowOne = 0.0,
        gradient: Literal["straight_through", "rotation"] = "straight_through",
        entropy_temperature: Positive | None = None,
        sampling_temperature: NotNegative = 0.0,
        by_angle: bool = False,
    ):
        super().__init__()
        self.dim = self.inputs = dim
        self.vocab, self.unit_norm, self.by_angle = vocab, unit_norm, by_angle
        self.sampling = Choice(sampling_temperature) if sampling_temperature else None
        rows = torch.randn(vocab, dim)
        rows = F.normalize(rows, dim=-1) if unit_norm else rows / vocab
        self.begin_learning(rows, learn, decay, start, restart, gradient, entropy_temperature)

    def assign(self, latents: Tensor, rows: Tensor, draws: Draws | None = None) -> Tensor:
        """Ids [B, N] of latents [B, N, dim] among `rows`: the nearest, or drawn where sampling is on."""
        if self.by_angle:
            latents, rows = F.normalize(latents, dim=-1), F.normalize(rows, dim=-1)
        if self.sampling is None or draws is None:
            return super().assign(latents, rows)
        points = latents.flatten(0, 1)
        uniform = draws.uniform("assignment", tuple(latents.shape[1:2])).to(points).flatten()
        parts = zip(points.split(tokens_at_once(self.vocab)), uniform.split(tokens_at_once(self.vocab)))
        ids = torch.cat([self.sampling(-distances(part, rows), at) for part, at in parts])
        return ids.unflatten(0, latents.shape[:2])
