"""Every token becomes the nearest row of a codebook whose unused rows move to the latents nearest to them."""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.bottlenecks.base import CodebookQuantizer
from pipeline.code import Code
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.clusters import cluster_sums, nearest_points
from pipeline.nn.full_precision import full_precision
from pipeline.nn.processes import gather_over_processes, sum_over_processes, world_size
from pipeline.ranges import Count, FractionBelowOne
from pipeline.validation import Range

SHARPNESS = 10  # of the share by which a row moves, in multiples of its mean use
OFFSET = 1e-3  # so that even a row that is never used keeps a part of what it was


class OnlineClustered(CodebookQuantizer):
    """Features h [B, N, dim] to the nearest of `vocab` rows; rows that are not used follow the latents.

    Zheng and Vedaldi, arXiv:2307.15139, in the form of bytedance/1d-tokenizer (`clustering_vq`). `usage` is the running
    mean, with `decay`, of the share of latents that took each row. After every global batch in training, a row moves to
    the latent of the batch that is nearest to it, by a share of exp(-10 usage vocab / (1 - decay) - 0.001): all but at
    once where the row is not used, and not at all where it is. With `unit_norm` that latent keeps its own length. It is
    done while the latents themselves are trained, alike in every process. The rows also learn by gradient.

    Terms, means per element: `vq` pulls the row to the latent, `commit` the latent to its row (0.25 is a usual weight).
    """

    def __init__(
        self,
        dim: Count,
        vocab: Annotated[int, Range(2)],
        unit_norm: bool = False,
        decay: FractionBelowOne = 0.99,
    ):
        super().__init__()
        self.dim = self.inputs = dim
        self.vocab, self.unit_norm, self.decay = vocab, unit_norm, decay
        self.codebook = nn.Parameter(torch.empty(vocab, dim).uniform_(-1 / vocab, 1 / vocab))
        self.register_buffer("usage", torch.zeros(vocab))
        self._counts: list[Tensor] = []  # of the global batch so far, by micro-batch, [vocab]
        self._nearest: list[tuple[Tensor, Tensor]] = []  # distances [vocab] of the rows' nearest latents, [vocab, dim]
        self._images = self._latents = 0  # in it

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return ("vq", "commit")

    def forward(self, h: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        with full_precision(h):
            code, terms = self.quantize(self.latents(h.float()), draws, h.float())
        return Code(z=code.z.to(h.dtype), ids=code.ids), terms

    def quantize(
        self, latents: Tensor, draws: Draws | None = None, places: Tensor | None = None
    ) -> tuple[Code, dict[str, Tensor]]:
        """As in the base; rows move to `places` [B, N, dim], the latents themselves when None."""
        rows = self.rows()
        ids = self.assign(latents.detach(), rows.detach())
        taken = F.embedding(ids, rows)
        terms = {"vq": F.mse_loss(taken, latents.detach()), "commit": F.mse_loss(latents, taken.detach())}
        if self.training and draws is not None and latents.requires_grad:
            self.record_batch(latents, ids, latents if places is None else places, draws)
        return Code(z=self.pass_gradient(taken, latents), ids=ids), terms

    @torch.compiler.disable
    @torch.no_grad()
    def record_batch(self, latents: Tensor, ids: Tensor, places: Tensor, draws: Draws) -> None:
        """Record which rows a micro-batch uses; once the global batch is complete, move those that are not used."""
        points = latents.flatten(0, 1)
        distances, nearest = nearest_points(points, self.rows())
        self._counts.append(cluster_sums(points, ids.flatten(), self.vocab)[0])
        self._nearest.append((distances, places.flatten(0, 1)[nearest]))
        self._images += len(latents) * world_size()
        self._latents += len(points) * world_size()
        if self._images < self.global_batch(latents, draws):
            return
        counts = sum_over_processes(torch.stack(self._counts).sum(dim=0))
        distances, places = (gather_over_processes(torch.stack(column)) for column in zip(*self._nearest))
        self.move_rows(counts / self._latents, distances.flatten(0, 1), places.flatten(0, 1))
        self._counts, self._nearest, self._images, self._latents = [], [], 0, 0

    def move_rows(self, used: Tensor, distances: Tensor, places: Tensor) -> None:
        """After a batch whose rows were taken by shares `used` [vocab] of its latents.

        `distances` [parts, vocab] and `places` [parts, vocab, dim] are of the nearest latents in its parts. A batch
        that is not finite changes nothing.
        """
        finite = places.isfinite().all()
        self.usage.lerp_(torch.where(finite, used, self.usage), 1 - self.decay)
        best = distances.argmin(dim=0)  # [vocab]
        nearest = places[best, torch.arange(self.vocab, device=best.device)]
        share = torch.exp(-self.usage * self.vocab * SHARPNESS / (1 - self.decay) - OFFSET)[:, None]
        moved = torch.lerp(self.codebook.float(), nearest, share)
        self.codebook.copy_(torch.where(finite, moved, self.codebook))
