"""Inputs of metrics, made of rows that a test has at hand."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from pipeline.code import LatentSpec
from pipeline.features.comparison import Comparison, ImageSets
from pipeline.features.extractors import FeatureExtractor
from pipeline.features.moments import Moments
from pipeline.features.networks import FeatureExtractors
from pipeline.features.passes import PerImage
from pipeline.measuring.samples import against_training
from pipeline.metrics.base import ImageSet, Measurement, Metric, SampleInputs, TokenizerInputs


class Geometry:
    """A tokenizer of which only the geometry of its codes is known."""

    def __init__(self, spec: LatentSpec):
        self.spec = spec


def extractors_of(features: Sequence[FeatureExtractor]) -> FeatureExtractors:
    """Features alone: neither a judge nor a perceptual distance."""
    described = {"judge": {"kind": "none"}}
    return FeatureExtractors(None, None, list(features), None, described, torch.device("cpu"))


def sample_inputs(
    features: Sequence[FeatureExtractor], samples: PerImage, held_out: PerImage, train: PerImage, **more: Any
) -> SampleInputs:
    """Samples beside the training split; `more` replaces fields."""
    rows = against_training(samples, held_out, train)
    fields = {
        "extractors": extractors_of(features),
        "moments": moments_of(rows, [name for feature in features for name in feature.statistics()]),
        "rows": rows,
        "samples": samples,
        "held_out": held_out,
        "train": train,
        "near": ImageSets(samples, held_out, train),
        "count": len(next(iter(samples.values()))),
        "protocol": {"versions": {}},
    }
    return SampleInputs(**fields | more)


def moments_of(rows: Comparison, names: list[str]) -> Comparison:
    """The same comparison by the moments of the rows under `names`."""
    sets = (rows.samples, rows.references, rows.held_out)
    return Comparison(*(of and {name: Moments.of(of[name]) for name in names} for of in sets), rows.described)


def tokenizer_inputs(tokenizer: Any, train: PerImage, held_out: PerImage, **more: Any) -> TokenizerInputs:
    """Rows of both splits, without anything in their protocols; `more` replaces fields."""
    fields = {"image_shape": (3, 16, 16), "seed": 0, "accelerator": Accelerator(cpu=True)}
    fields["extractors"] = extractors_of([])
    fields |= {"train": ImageSet(train, {}), "held_out": ImageSet(held_out, {}), "encode": None}
    return TokenizerInputs(tokenizer, **fields | more)


def measured(metric: Metric, inputs: SampleInputs | TokenizerInputs) -> dict[str, Measurement]:
    """The numbers of one metric, by key; none where it needs what the inputs do not have."""
    return dict(metric.measure(inputs)) if metric.needs <= inputs.available else {}
