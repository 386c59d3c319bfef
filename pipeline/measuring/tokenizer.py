"""A tokenizer under measurement: held-out images go through it, and its metrics are measured on them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.code import LatentSpec
from pipeline.draws import ImageDraws, mix
from pipeline.features.networks import FeatureExtractors
from pipeline.features.passes import ImageRows
from pipeline.images.reading import ImageBatch
from pipeline.images.rendering import rendered
from pipeline.measuring.numbers import measure_metric
from pipeline.metrics.base import Encode, EncodedImages, Measurement, TokenizerInputs, TokenizerMetric
from pipeline.recipes.arithmetic import Precision
from pipeline.runs.precision import arithmetic
from pipeline.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class TokenizerMeasuring:
    """Codes are modes, at unit scale; reconstructions are rounded to 8 bits."""

    tokenizer: Tokenizer
    extractors: FeatureExtractors
    metrics: list[TokenizerMetric]
    seed: int
    encode: Encode
    vision: Callable[[Tensor], Tensor] | None = None  # images to a vision model's features [B, D]
    precision: Precision = "fp32"  # of encoding and decoding
    left_out: dict[str, str] = field(default_factory=dict)  # why a number is not among those measured, by its name

    @torch.no_grad()
    def reconstruct(self, batch: ImageBatch, indices: Tensor) -> EncodedImages:
        """A batch through the tokenizer; `indices` [B] are the numbers of its images, which randomness depends on."""
        batch = batch.to(self.extractors.device)
        images, condition = batch.images, batch.condition
        encode = lambda others: self.encode(others, condition)  # noqa: E731
        with arithmetic(images.device, self.precision):
            code = encode(images)
            reconstructions = rendered(self.tokenizer, code, condition)
        seeds = [mix(self.seed, "card", index) for index in indices.tolist()]
        draws = ImageDraws.from_seeds(seeds, self.extractors.device)
        networks, which = (self.tokenizer, self.extractors), (draws, indices.tolist(), self.seed)
        return EncodedImages(images, code, reconstructions, encode, *networks, *which, condition, self.vision)

    @torch.no_grad()
    def rows(self, batch: EncodedImages) -> ImageRows:
        """What the metrics must know of each image, and of all."""
        rows = ImageRows()
        for metric in self.metrics:
            with arithmetic(batch.images.device, self.precision):
                summed = metric.moment_rows(batch)
            rows |= ImageRows(metric.rows(batch), summed={name: values.float() for name, values in summed.items()})
        return rows

    def pass_through(self, batch: ImageBatch, indices: Tensor) -> ImageRows:
        """The rows of a batch of images with these numbers [B]."""
        return self.rows(self.reconstruct(batch, indices))

    def measure(self, inputs: TokenizerInputs) -> Iterable[tuple[TokenizerMetric, dict[str, Measurement]]]:
        """Each metric with its numbers by key."""
        for metric in self.metrics:
            if metric.needs <= inputs.available:
                yield metric, measure_metric(metric, inputs, self.left_out)


def suited_metrics(metrics: Iterable[TokenizerMetric], spec: LatentSpec) -> list[TokenizerMetric]:
    """The metrics that codes of this geometry can be measured by."""
    return [metric for metric in metrics if metric.why_left_out(spec) is None]
