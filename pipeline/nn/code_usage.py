"""How much of a codebook is used, over an epoch of training and over stored ids."""

import logging

import torch
from torch import Tensor

from pipeline.code import LatentSpec, stack_ids
from pipeline.nn.processes import is_first, sum_over_processes, world_size

LARGEST = 2**20  # codes that are counted one by one

log = logging.getLogger(__name__)


class CodeUsage:
    """Counts the ids of training batches; `values` are those of the last whole epoch, and empty before.

    An epoch is as many images as the training set has, or the whole training where that is shorter. `code_usage` is
    the fraction of the codes that occur and `code_perplexity` the exponential of the entropy of their frequencies, both
    means over codebooks. Below a usage of `least` it warns, once.
    """

    def __init__(self, spec: LatentSpec, images: int, least: float):
        self.spec, self.least = spec, least
        self.images = max(1, images // world_size())  # of this process in an epoch
        self.counts: Tensor | None = None
        self.seen, self.warned = 0, False
        self.values: dict[str, Tensor] = {}

    def add(self, ids: Tensor) -> None:
        """Count the ids [B, N] or [B, N, codebooks] of a batch; at the epoch's end, over all processes."""
        counts = count_by_codebook(ids, self.spec)
        self.counts = counts if self.counts is None else self.counts + counts
        self.seen += len(ids)
        if self.seen >= self.images:
            usage, perplexity = usage_and_perplexity(sum_over_processes(self.counts))
            self.values = {"code_usage": usage, "code_perplexity": perplexity}
            self.counts, self.seen = None, 0
            self.warn(float(usage), float(perplexity))

    def warn(self, usage: float, perplexity: float) -> None:
        if usage >= self.least or self.warned or not is_first():
            return
        self.warned = True
        log.warning(
            "an epoch used %.1f %% of the %d codes (perplexity %.0f); try start: kmeans, restart: 0.03, an entropy term"
            " (entropy_temperature) or more weight for it, a smaller vocab, or fewer channels (dim)",
            100 * usage,
            self.spec.codes,
            perplexity,
        )


def make_code_usage(spec: LatentSpec, images: int, least: float) -> CodeUsage | None:
    """The counter of ids in a training with epochs of `images`; None for continuous codes or too many of them."""
    if spec.vocab > LARGEST and is_first():
        log.warning("the use of %d codes is not counted; up to %d are", spec.vocab, LARGEST)
    return CodeUsage(spec, images, least) if 0 < spec.vocab <= LARGEST else None


def measure_usage(ids: Tensor, spec: LatentSpec) -> tuple[float, float]:
    """Usage and perplexity of ids [B, N] or [B, N, codebooks], as in `CodeUsage`."""
    usage, perplexity = usage_and_perplexity(count_by_codebook(ids, spec))
    return float(usage), float(perplexity)


def count_by_codebook(ids: Tensor, spec: LatentSpec) -> Tensor:
    """How often each code is taken: ids [B, N] or [B, N, codebooks] to [all codebooks, codes] int64.

    Segments have codebooks of their own, which come one segment after another. The end of a row is no code.
    """
    return torch.cat([count_ids(part, spec.vocab) for part in spec.by_codebook(stack_ids(ids))])[:, : spec.codes]


def count_ids(ids: Tensor, vocab: int) -> Tensor:
    """How often each code of each codebook is taken: ids [..., codebooks] to [codebooks, vocab] int64."""
    codebooks = ids.shape[-1]
    flat = (ids.long() + vocab * torch.arange(codebooks, device=ids.device)).flatten()
    counts = torch.zeros(codebooks * vocab, dtype=torch.int64, device=ids.device)
    return counts.index_add_(0, flat, torch.ones_like(flat)).unflatten(0, (codebooks, vocab))


def usage_and_perplexity(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Usage and perplexity of counts [codebooks, vocab], each the mean over codebooks, [] float32."""
    exact = counts.cpu().double()
    perplexity = torch.special.entr(exact / exact.sum(dim=1, keepdim=True)).sum(dim=1).exp()
    usage, perplexity = (exact > 0).double().mean(), perplexity.mean()
    return usage.float().to(counts.device), perplexity.float().to(counts.device)
