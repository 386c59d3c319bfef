"""Codebook rows that learn: by gradient or as running means, from random rows or k-means, placed anew where unused."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.code import Code
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.candidates import choose_candidates, draw_candidates
from pipeline.nn.clusters import cluster_sums, distances, k_means
from pipeline.nn.entropy import entropy_gap
from pipeline.nn.entry_points import EntryPoints
from pipeline.nn.processes import broadcast_from_first, sum_over_processes, world_size
from pipeline.nn.straight_through import rotation_trick

ROUNDS = 10  # of k-means
POINTS = 64  # latents a row that k-means sees at most
SMOOTHING = 1e-5  # Laplace, in latents a row
RESTARTS = 256  # rows at most that are restarted after one batch


class LearnedRows(EntryPoints):
    """What the quantisers have in common whose settings those of the bottleneck `vector_quantize` are.

    It comes before `CodebookQuantizer` among the bases of one, whose `latents`, `rows` and `assign` it uses.
    """

    entry_points = ("begin", "quantize")

    def begin_learning(
        self,
        rows: Tensor,
        learn: Literal["gradient", "ema"],
        decay: float,
        start: Literal["random", "kmeans"],
        restart: float,
        gradient: Literal["straight_through", "rotation"],
        entropy_temperature: float | None,
    ) -> None:
        """Make the codebook of `rows` [vocab, dim], and what is kept of how it is used; called by the constructor."""
        vocab, dim = rows.shape
        self.learn, self.decay, self.start, self.restart = learn, decay, start, restart
        self.gradient, self.entropy_temperature = gradient, entropy_temperature
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

    @torch.compiler.disable
    @torch.no_grad()
    def initialise_codebook(self, latents: Tensor, draws: Draws) -> None:
        """Before the first batch: the rows at their start, each with the counts of an equal division of the latents."""
        if not self.started:
            if self.start == "kmeans":
                most = POINTS * self.vocab
                points = choose_candidates([draw_candidates(latents, draws, "start", most)], most)
                rows = torch.cat([points[: self.vocab], self.rows()[len(points) :]])
                self.codebook.copy_(broadcast_from_first(self.find_centres(points, rows)))
                self.placed += 1
            self.counts.fill_(self.global_batch(latents, draws) * latents.shape[1] / self.vocab)
            if self.learn == "ema":
                self.sums.copy_(self.codebook * self.counts[:, None])
            self.started.fill_(True)
        self._going = True

    def find_centres(self, points: Tensor, rows: Tensor) -> Tensor:
        """The rows [vocab, dim] that k-means makes of `rows` by the points [T, dim]."""
        return k_means(points, rows, ROUNDS, self.unit_norm)

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
    def copy_restarted_rows(self, trained: "LearnedRows") -> None:
        """As an average of `trained` (`pipeline.training.ema`): copy the rows that were restarted there."""
        if not hasattr(self, "placed"):
            return
        anew = self.placed != trained.placed
        self.counts.copy_(torch.where(anew, trained.counts, self.counts))
        for name in ("codebook", "sums") if self.learn == "ema" else ("codebook",):
            ours = getattr(self, name)
            ours.copy_(torch.where(anew[:, None], getattr(trained, name), ours))
