"""Every token becomes the nearest row of a codebook."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code
from pipeline.draws import Draws


class VectorQuantize(Bottleneck):
    """Features h [B, N, dim] to the nearest of `vocab` rows, the first one on ties.

    van den Oord et al., arXiv:1711.00937. With `unit_norm`, latents and rows have length one before they are compared
    and z is the row at length one (Yu et al., arXiv:2110.04627). The terms are means per element, unweighted: `vq`
    pulls the row to the latent and `commit` the latent to its row (a weight of 0.25 is usual for `commit`).
    """

    def __init__(self, dim: int, vocab: int, unit_norm: bool = True):
        super().__init__()
        self.dim = self.inputs = dim
        self.vocab, self.unit_norm = vocab, unit_norm
        rows = torch.randn(vocab, dim)
        self.codebook = nn.Parameter(F.normalize(rows, dim=-1) if unit_norm else rows / vocab)

    @classmethod
    def terms(cls, **arguments) -> tuple[str, ...]:
        return ("vq", "commit")

    def forward(self, h: Tensor, draws: Draws | None = None) -> tuple[Code, dict[str, Tensor]]:
        with torch.autocast(h.device.type, enabled=False):
            latents = self.normalized(h.float())
            ids = self.nearest(h)
            rows = self.lookup(ids)
            terms = {"vq": F.mse_loss(rows, latents.detach()), "commit": F.mse_loss(latents, rows.detach())}
            z = latents + (rows - latents).detach()
        return Code(z=z.to(h.dtype), ids=ids), terms

    @torch.no_grad()
    def nearest(self, h: Tensor) -> Tensor:
        """Ids [B, N] of the rows nearest to h [B, N, dim]."""
        with torch.autocast(h.device.type, enabled=False):
            latents, rows = self.normalized(h.float()), self.normalized(self.codebook.float())
            distance = torch.addmm(rows.square().sum(-1), latents.flatten(0, -2), rows.T, alpha=-2)
            return distance.argmin(-1).unflatten(0, h.shape[:-1])

    def lookup(self, ids: Tensor) -> Tensor:
        return self.normalized(F.embedding(ids, self.codebook))

    def normalized(self, vectors: Tensor) -> Tensor:
        """Vectors [..., dim] as they are compared: at length one, or as they are."""
        return F.normalize(vectors, dim=-1) if self.unit_norm else vectors
