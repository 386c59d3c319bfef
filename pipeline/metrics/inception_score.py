"""Inception score: how sure a classifier is of each sample, and how many classes it is sure of."""

import torch
from torch import Tensor


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and population std over `splits` consecutive parts of logits [n, classes] (arXiv:1606.03498).

    Part i holds the rows i * n // splits up to (i + 1) * n // splits. Published numbers that shuffle do so beforehand.
    """
    ends = [i * len(logits) // splits for i in range(splits + 1)]
    values = torch.stack([_score(logits[low:high]) for low, high in zip(ends, ends[1:])])
    return values.mean().item(), values.std(unbiased=False).item()


def inception_score_chunks(logits: Tensor, size: int = 5000) -> float:
    """The mean over consecutive chunks of `size` rows, the last one shorter, as ADM's evaluation does (2105.05233)."""
    return torch.stack([_score(part) for part in logits.split(size)]).mean().item()


def _score(logits: Tensor) -> Tensor:
    """exp(mean KL(p(y|x) || p(y))) in float64."""
    log_given = logits.double().log_softmax(dim=1)
    given = log_given.exp()
    return (given * (log_given - given.mean(dim=0).log())).sum(dim=1).mean().exp()
