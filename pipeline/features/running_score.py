"""The inception score of logits that come in parts."""

import torch
from torch import Tensor

CHUNK = 5000  # samples that one score is over, in ADM's evaluation and by the usual ten parts of 50,000


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
        log_given = logits.cpu().double().log_softmax(dim=1)
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
