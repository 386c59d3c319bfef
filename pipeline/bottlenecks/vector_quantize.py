"""Every token becomes the nearest row of a codebook."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.bottlenecks.base import CodebookQuantizer
from pipeline.code import Code
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.candidates import choose_candidates, draw_candidates
from pipeline.nn.clusters import cluster_sums, distances, k_means
from pipeline.nn.entropy import entropy_gap, tokens_at_once
from pipeline.nn.processes import broadcast_from_first, sum_over_processes, world_size
from pipeline.nn.straight_through import rotation_trick
from pipeline.ranges import Count, FractionBelowOne, NotNegative, Positive
from pipeline.samplers.choice import Choice
from pipeline.validation import Range

ROUNDS = 10  # of k-means
POINTS = 64  # latents a row that k-means sees at most
SMOOTHING = 1e-5  # Laplace, in latents a row
RESTARTS = 256  # rows at most that are restarted after one batch


class VectorQuantize(CodebookQuantizer):
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
        self.vocab, self.unit_norm, self.learn, self.decay, self.start = vocab, unit_norm, learn, decay, start
        self.restart, self.gradient, self.entropy_temperature = restart, gradient, entropy_temperature
        self.by_angle = by_angle
        self.sampling = Choice(sampling_temperature) if sampling_temperature else None
        rows = torch.randn(vocab, dim)
        rows = F.normalize(rows, dim=-1) if unit_norm else rows / vocab
        if learn == "gradient":
            self.codebook = nn.Parameter(rows)
        else:
            self.register_buffer("codebook", rows)
            self.register_buffer("sums", torch.zeros(vocab, dim))  # running sums of the latents that took each row
        self.watches = learn == "ema" or restart > 0
        if self.watches or start == "kmeans":
            self.register_buffer("counts", torch.zeros(vocab))  # running counts of them
            self.register_buffer("placed", torch.zeros(vocab, dtype=torch.int64))  # times that a row was restarted
            self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self._going = not self.watches and start == "random"  # `started`, once it has been read
        self._seen: list[tuple[Tensor, Tensor]] = []  # counts and sums of the global batch so far
        self._candidates: list[tuple[Tensor, Tensor]] = []  # latents of it that dead rows may be placed at
        self._images = 0  # in it

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        vq = ("vq",) if arguments.learn == "gradient" else ()
        return (*vq, "commit", *(() if arguments.entropy_temperature is None else ("entropy",)))

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        start = ("the k-means start",) if arguments.start == "kmeans" else ()
        return start if arguments.entropy_temperature is None else (*start, "the entropy term")

    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        self.begin(latents, draws)
        learning = self.learns(latents, draws)
        rows = self.rows()
        ids = self.assign(latents.detach(), rows.detach(), draws if self.training else None)
        taken = F.embedding(ids, rows)
        terms = {"vq": F.mse_loss(taken, latents.detach())} if self.learn == "gradient" else {}
        terms["commit"] = F.mse_loss(latents, taken.detach())
        if self.entropy_temperature is not None:
            terms["entropy"] = entropy_gap(latents.flatten(0, 1), self.logits(rows), self.vocab)
        if learning and self.watches:
            self.record_batch(latents, ids, draws)
        return Code(z=self.pass_gradient(taken, latents), ids=ids), terms

    def begin(self, latents: Tensor, draws: Draws | None) -> None:
        if not self._going and self.learns(latents, draws):
            self.initialise_codebook(latents, draws)

    def learns(self, latents: Tensor, draws: Draws | None) -> bool:
        """Whether these latents are of a training that changes them."""
        return self.training and draws is not None and latents.requires_grad

    def pass_gradient(self, value: Tensor, latents: Tensor) -> Tensor:
        return rotation_trick(value, latents) if self.gradient == "rotation" else super().pass_gradient(value, latents)

    def logits(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """Points [T, dim] to the logits [T, vocab] whose entropy is a term."""
        return lambda points: distances(points, rows) / -self.entropy_temperature

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

    @torch.compiler.disable
    @torch.no_grad()
    def initialise_codebook(self, latents: Tensor, draws: Draws) -> None:
        """Before the first batch: the rows at their start, each with the counts of an equal division of the latents."""
        if not self.started:
            if self.start == "kmeans":
                most = POINTS * self.vocab
                points = choose_candidates([draw_candidates(latents, draws, "start", most)], most)
                rows = torch.cat([points[: self.vocab], self.rows()[len(points) :]])
                self.codebook.copy_(broadcast_from_first(k_means(points, rows, ROUNDS, self.unit_norm)))
                self.placed += 1
            self.counts.fill_(self.global_batch(latents, draws) * latents.shape[1] / self.vocab)
            if self.learn == "ema":
                self.sums.copy_(self.codebook * self.counts[:, None])
            self.started.fill_(True)
        self._going = True

    @torch.compiler.disable
    @torch.no_grad()
    def record_batch(self, latents: Tensor, ids: Tensor, draws: Draws) -> None:
        """Record which rows a micro-batch uses; once the global batch is complete, update the codebook."""
        self._seen.append(cluster_sums(latents.flatten(0, 1), ids.flatten(), self.vocab))
        if self.restart:
            self._candidates.append(draw_candidates(latents, draws, "restart", RESTARTS))
        self._images += len(latents) * world_size()
        if self._images < self.global_batch(latents, draws):
            return
        counts, sums = (sum_over_processes(torch.stack(column).sum(dim=0)) for column in zip(*self._seen))
        self.update_averages(counts, sums)
        if self.restart:
            self.restart_rows(choose_candidates(self._candidates, min(RESTARTS, self.vocab)))
        self._seen, self._candidates, self._images = [], [], 0

    def update_averages(self, counts: Tensor, sums: Tensor) -> None:
        """The running means after a batch whose rows had `counts` [vocab] latents, together `sums` [vocab, dim].

        A batch that is not finite changes nothing.
        """
        finite = sums.isfinite().all()
        self.counts.lerp_(torch.where(finite, counts, self.counts), 1 - self.decay)
        if self.learn == "ema":
            self.sums.lerp_(torch.where(finite, sums, self.sums), 1 - self.decay)
            total = self.counts.sum()
            smoothed = (self.counts + SMOOTHING) / (total + self.vocab * SMOOTHING) * total
            self.codebook.copy_(self.sums / smoothed[:, None])
            self.codebook.copy_(self.rows())

    def restart_rows(self, points: Tensor) -> None:
        """Set the least used rows, those below the threshold, to the points [k, dim]."""
        mean_count = self.counts.mean()
        counts, rows = (column[: len(points)] for column in self.counts.sort(stable=True))
        dead = (counts < self.restart * mean_count) & points.isfinite().all(dim=-1)
        self.codebook[rows] = torch.where(dead[:, None], points, self.codebook[rows])
        self.counts[rows] = torch.where(dead, mean_count, counts)
        if self.learn == "ema":
            self.sums[rows] = torch.where(dead[:, None], points * mean_count, self.sums[rows])
        self.placed[rows] += dead

    @torch.no_grad()
    def copy_restarted_rows(self, trained: "VectorQuantize") -> None:
        """As an average of `trained` (`pipeline.training.ema`): copy the rows that were restarted there."""
        if not hasattr(self, "placed"):
            return
        anew = self.placed != trained.placed
        self.counts.copy_(torch.where(anew, trained.counts, self.counts))
        for name in ("codebook", "sums") if self.learn == "ema" else ("codebook",):
            ours = getattr(self, name)
            ours.copy_(torch.where(anew[:, None], getattr(trained, name), ours))
