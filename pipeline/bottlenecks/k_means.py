"""Every token becomes the nearest of some centres that k-means finds among the features of a frozen network."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.bottlenecks.base import CodebookQuantizer
from pipeline.code import Code
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.candidates import choose_candidates, draw_candidates
from pipeline.nn.clusters import cluster_sums
from pipeline.nn.processes import broadcast_from_first, sum_over_processes, world_size
from pipeline.ranges import Count
from pipeline.validation import Range


class KMeans(CodebookQuantizer):
    """Features h [B, N, dim] to the nearest of `vocab` centres, which no gradient changes.

    The tokenizer of DiGIT (Zhu et al., arXiv:2410.12490). Centres begin as features of the first batch of a training.
    In each of `rounds` rounds the features of `images` images, those that training reads, go to their nearest centres,
    which then become the means of what went to them (Lloyd); one to which none went stays. After that they stay for
    good. The release runs as many rounds on one sample of features; these see new images in each. It is alike in every
    process, however a batch is divided. Without terms.
    """

    unit_norm = False

    def __init__(self, dim: Count, vocab: Annotated[int, Range(2)], rounds: Count = 20, images: Count = 8192):
        super().__init__()
        self.dim = self.inputs = dim
        self.vocab, self.rounds, self.images = vocab, rounds, images
        self.register_buffer("codebook", torch.randn(vocab, dim))
        self.register_buffer("sums", torch.zeros(vocab, dim))  # of the features of the round so far
        self.register_buffer("counts", torch.zeros(vocab))  # of them
        self.register_buffer("read", torch.zeros((), dtype=torch.int64))  # images of the round so far
        self.register_buffer("done", torch.full((), -1, dtype=torch.int64))  # rounds; -1 before the first batch
        self._over = False  # whether all rounds are done, once that has been read

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return ()

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        return ("the centres that k-means begins with",)

    def quantize(self, latents: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        if self.training and draws is not None and not self._over:
            self.learn(latents.detach(), draws)
        rows = self.rows()
        ids = self.assign(latents.detach(), rows)
        return Code(z=self.pass_gradient(F.embedding(ids, rows), latents), ids=ids), {}

    @torch.compiler.disable
    @torch.no_grad()
    def learn(self, latents: Tensor, draws: Draws) -> None:
        """Add a batch [B, N, dim] to the round, and end that where it has its images."""
        self._over = bool(self.done >= self.rounds)
        if self._over:
            return
        if self.done < 0:
            points = choose_candidates([draw_candidates(latents, draws, "start", self.vocab)], self.vocab)
            rows = torch.cat([points, self.codebook[len(points) :]])
            self.codebook.copy_(broadcast_from_first(rows))
            self.done.fill_(0)
        counts, sums = cluster_sums(latents.flatten(0, 1), self.assign(latents, self.rows()).flatten(), self.vocab)
        self.counts += sum_over_processes(counts)
        self.sums += sum_over_processes(sums)
        self.read += len(latents) * world_size()
        if self.read >= self.images:
            self.end_round()

    def end_round(self) -> None:
        """Centres become the means of what went to them; a round with features that are not finite changes nothing."""
        means = self.sums / self.counts.clamp_min(1)[:, None]
        there = (self.counts > 0) & self.sums.isfinite().all()
        self.codebook.copy_(torch.where(there[:, None], means, self.codebook))
        self.sums.zero_(), self.counts.zero_(), self.read.zero_()
        self.done += 1

    @torch.no_grad()
    def copy_restarted_rows(self, trained: "KMeans") -> None:
        """As an average of `trained` (`pipeline.training.ema`): the centres themselves."""
        for ours, theirs in zip(self.buffers(), trained.buffers()):
            ours.copy_(theirs)
