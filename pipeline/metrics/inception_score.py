"""Inception score: how sure a classifier is of each sample, and how many classes it is sure of."""

import torch
from torch import Tensor

from pipeline.features.running_score import CHUNK
from pipeline.metrics.base import Measurements, Quantity, SampleInputs, SampleMetric


class InceptionScore(SampleMetric):
    """Inception score of all samples (arXiv:1606.03498), by the logits of Inception."""

    quantities = (
        Quantity(
            "inception_score",
            "Inception score",
            "higher",
            "how certain Inception's class predictions are, and how varied; 1 where they are all the same",
        ),
    )
    needs = frozenset({"logits"})
    order = 70

    def measure(self, inputs: SampleInputs) -> Measurements:
        """The floor is that of as many held-out images, where there are as many."""
        feature = inputs.extractors.logits
        where = {"images": f"{inputs.count} samples", "chunks": f"mean over {CHUNK} at a time"}
        where["features"] = feature.describe() | {"what": "class logits, without the bias", "width": 1008}
        if inputs.score_of_real is not None:
            where |= {"held_out": f"{inputs.count} real held-out images"}
        yield self.quantities[0].measurement(inputs.score, where | inputs.protocol, held_out=inputs.score_of_real)


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


def _score(logits: Tensor) -> Tensor:
    """exp(mean KL(p(y|x) || p(y))) in float64."""
    log_given = logits.double().log_softmax(dim=1)
    given = log_given.exp()
    return (given * (log_given - given.mean(dim=0).log())).sum(dim=1).mean().exp()
