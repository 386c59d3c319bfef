"""Inception score: how sure a classifier is of each sample, and how many classes it is sure of."""

import torch
from torch import Tensor

CHUNK = 5000  # samples that one score is over, in ADM's evaluation and by the usual ten parts of 50,000


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and population std over `splits` consecutive parts of logits [n, classes] (arXiv:1606.03498).

    Part i holds the rows i * n // splits up to (i + 1) * n // splits. Published numbers that shuffle do so beforehand.
    """
    ends = [i * len(logits) // splits for i in range(splits + 1)]
    values = torch.stack([_score(logits[low:high]) for low, high in zip(ends, ends[1:])])
    return values.mean().item(), values.std(unbiased=False).item()


def inception_score_chunks(logits: Tensor, size: int = CHUNK) -> float:
    """The mean over consecutive chunks of `size` rows, the last one shorter, as ADM's evaluation does (2105.05233)."""
    return torch.stack([_score(part) for part in logits.split(size)]).mean().item()


class RunningScore:
    """`inception_score_chunks` of logits that come in any batches and order, each with its place among all of them.

    What is kept of a chunk does not grow with it: sums over its rows of p(y|x) and of p(y|x) log p(y|x).
    """

    def __init__(self, size: int = CHUNK):
        self.size = size
        self.counts: dict[int, int] = {}
        self.sums: dict[int, Tensor] = {}  # [classes]
        self.negative_entropies: dict[int, float] = {}

    def update(self, places: Tensor, logits: Tensor) -> "RunningScore":
        """Take in logits [B, classes] of the samples number `places` [B]."""
        log_given = logits.double().cpu().log_softmax(dim=1)
        given, chunks = log_given.exp(), places.cpu() // self.size
        for chunk in chunks.unique().tolist():
            rows = chunks == chunk
            self._add(chunk, int(rows.sum()), given[rows].sum(0), (given * log_given)[rows].sum().item())
        return self

    def merge(self, other: "RunningScore") -> "RunningScore":
        """Take in what `other` has seen."""
        for chunk in other.counts:
            self._add(chunk, other.counts[chunk], other.sums[chunk], other.negative_entropies[chunk])
        return self

    def value(self) -> float:
        """The mean over chunks of exp(mean KL(p(y|x) || p(y)))."""
        scores = []
        for chunk, count in self.counts.items():
            marginal = self.sums[chunk] / count
            cross = torch.special.xlogy(marginal, marginal).sum().item()
            scores.append(torch.tensor(self.negative_entropies[chunk] / count - cross, dtype=torch.float64).exp())
        return torch.stack(scores).mean().item()

    def _add(self, chunk: int, count: int, sums: Tensor, negative_entropy: float) -> None:
        self.counts[chunk] = self.counts.get(chunk, 0) + count
        self.sums[chunk] = self.sums.get(chunk, 0) + sums
        self.negative_entropies[chunk] = self.negative_entropies.get(chunk, 0.0) + negative_entropy


def _score(logits: Tensor) -> Tensor:
    """exp(mean KL(p(y|x) || p(y))) in float64."""
    log_given = logits.double().log_softmax(dim=1)
    given = log_given.exp()
    return (given * (log_given - given.mean(dim=0).log())).sum(dim=1).mean().exp()
