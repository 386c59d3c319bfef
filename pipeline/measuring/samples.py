"""Samples beside real images: the rows of both, and the numbers of a report and of a sweep."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.features.judge import fit_judge
from pipeline.features.moments import Moments
from pipeline.features.networks import FeatureExtractors
from pipeline.features.passes import PerImage, collect_rows, count, evenly_spaced
from pipeline.files.writing import read_json
from pipeline.images.eight_bits import from_bytes
from pipeline.images.files import open_archive
from pipeline.images.reading import Images
from pipeline.measuring.image_statistics import ImageStatistics, gather_statistics
from pipeline.measuring.numbers import measure_metric
from pipeline.measuring.protocols import computation
from pipeline.measuring.reference import Reference, load_reference
from pipeline.metrics.base import Comparison, Measurement, SampleInputs, SampleMetric, report_metrics
from pipeline.recipes.arithmetic import Precision
from pipeline.recipes.schema import Recipe
from pipeline.runs.precision import arithmetic
from pipeline.runs.workspace import Workspace

CIRCUMSTANCES = ("command", "finished", "device", "processes", "python", "versions", "commit", "images", "seed")
Rows = Callable[[Tensor, Tensor], PerImage]  # images [B, 3, H, W] and their numbers [B] to rows


@dataclass(frozen=True)
class RealImages:
    """What samples are measured against, read once however many sets of samples there are."""

    train: PerImage
    held_out: PerImage
    reference: Reference | None  # where the recipe has one; else samples are measured against `train`
    sizes: dict[str, int]  # images of the splits
    precision: Precision = "fp32"  # in which the features of all images were computed

    @property
    def protocol(self) -> dict[str, Any]:
        return computation(self.precision) | {"splits": self.sizes}


@dataclass(frozen=True)
class SampleMeasuring:
    """Measures sets of samples as the `evaluate` section of a recipe says. Every process takes part."""

    recipe: Recipe
    extractors: FeatureExtractors
    metrics: list[SampleMetric]
    accelerator: Accelerator
    left_out: dict[str, str] = field(default_factory=dict)  # why a number is not among those measured, by its name

    @classmethod
    def of_run(cls, recipe: Recipe, work: Workspace, train: Images, folder: Path) -> "SampleMeasuring":
        """The judge is that of the run's report where there is one, else trained on `train`, and saved in `folder`."""
        part, device = recipe.evaluate, work.accelerator.device
        if work.accelerator.is_main_process:
            fit_judge(train, recipe.data.size, recipe.seed, device, folder, earlier=work.root / "report" / "judge")
        work.accelerator.wait_for_everyone()
        sizes = (recipe.data.size, recipe.seed, device)
        extractors = FeatureExtractors.load(folder, part.features, part.resize, recipe.weights.files, *sizes)
        return cls(recipe, extractors, report_metrics(recipe.evaluate, SampleMetric), work.accelerator)

    @torch.no_grad()
    def rows(self, images: Tensor) -> PerImage:
        """The rows of images [B, 3, H, W] in [-1, 1] under every name that a metric of samples needs."""
        images = images.to(self.extractors.device)
        with arithmetic(self.extractors.device, self.recipe.precision.evaluate):
            rows = {name: each.float() for name, each in self.extractors.extract_all(images).items()}
        for metric in self.metrics:
            rows |= metric.rows(images, self.extractors)
        return rows

    def read_real(self, train: Images, held_out: Images, more: Rows | None = None) -> RealImages:
        """The rows of real images; `more` returns further rows of held-out ones."""
        splits = self.read_split(train), self.read_split(held_out, more)
        given = self.recipe.evaluate.reference != "train"
        reference = load_reference(self.recipe, self.extractors, self.accelerator) if given else None
        sizes = {"train": len(train), "held_out": len(held_out)}
        return RealImages(*splits, reference, sizes, self.recipe.precision.evaluate)

    def read_split(self, images: Images, more: Rows | None = None) -> PerImage:
        """The rows of at most evaluate.images images of a split, evenly spaced in it."""
        chosen = evenly_spaced(None, len(images), min(len(images), self.recipe.evaluate.images))

        def measure(indices: Tensor) -> PerImage:
            batch = images.plain(chosen[indices])
            labels = {"labels": batch.condition.labels} if batch.condition else {}
            return self.rows(batch.images) | labels | (more(batch.images, indices) if more else {})

        return collect_rows(self.accelerator, len(chosen), measure)

    def read_samples(self, pixels: np.ndarray, labels: np.ndarray | None) -> ImageStatistics:
        """Rows of at most evaluate.images samples, evenly through the classes; of all, what a given reference needs."""
        classes = None if labels is None else torch.from_numpy(labels)
        chosen = evenly_spaced(classes, len(pixels), min(len(pixels), self.recipe.evaluate.images))
        names = list(self.extractors.statistics) if self.recipe.evaluate.reference != "train" else []
        logits = self.extractors.logits and self.extractors.logits.logits

        def measure(indices: Tensor) -> PerImage:
            return self.rows(from_bytes(pixels[indices.numpy()]))

        samples = gather_statistics(self.accelerator, len(pixels), measure, chosen, names, logits)
        if classes is not None:
            samples.rows["labels"] = classes[chosen]
        return samples

    def measure(
        self, samples: ImageStatistics, real: RealImages, record: dict[str, Any]
    ) -> Iterator[tuple[SampleMetric, dict[str, Measurement]]]:
        """Each metric with its numbers of a set of samples, by key; `record` says how they were sampled."""
        inputs = self.inputs(samples, real, record)
        for metric in self.metrics:
            if metric.needs <= inputs.available:
                yield metric, measure_metric(metric, inputs, self.left_out)

    def inputs(self, samples: ImageStatistics, real: RealImages, record: dict[str, Any]) -> SampleInputs:
        """What the metrics are given: distances compare as many samples as held-out images, where there are any."""
        sampling = {key: value for key, value in record.items() if key not in CIRCUMSTANCES}
        fewest = min(filter(None, (count(samples.rows), count(real.held_out))))
        few, floor = (
            select_rows(rows, evenly_spaced(rows.get("labels"), count(rows), min(fewest, count(rows))))
            for rows in (samples.rows, real.held_out)
        )
        if real.reference is None:
            rows = against_training(few, floor, real.train)
            moments = moments_of(rows, list(self.extractors.statistics))
        else:
            held_out = None if self.recipe.evaluate.reference == "held_out" or not floor else floor
            moments, rows = against_reference(samples, few, held_out, real.reference)
        return SampleInputs(
            self.extractors,
            moments,
            rows,
            samples.rows,
            real.held_out,
            real.train,
            samples.count,
            samples.score.value() if self.extractors.logits else None,
            {"sampling": sampling} | real.protocol,
        )


def against_training(samples: PerImage, held_out: PerImage, train: PerImage) -> Comparison:
    """Samples beside the training split, and as many held-out images beside it."""
    images = {
        "images": f"{count(samples)} samples",
        "held_out": f"{count(held_out)} real held-out images",
        "references": f"{count(train)} images of the training split",
    }
    assert not held_out or count(samples) == count(held_out)
    return Comparison(samples, train, held_out or None, images)


def moments_of(rows: Comparison, names: list[str]) -> Comparison:
    """The same comparison by the moments of the rows under `names`."""
    sets = (rows.samples, rows.references, rows.held_out)
    return Comparison(*(of and {name: Moments.of(of[name]) for name in names} for of in sets), rows.described)


def against_reference(
    samples: ImageStatistics, few: PerImage, held_out: PerImage | None, reference: Reference
) -> tuple[Comparison, Comparison | None]:
    """All samples beside the whole reference by moments, and the rows `few` beside its rows, where it has any.

    `held_out` has as many rows as `few`; None where they are the reference. Distances of moments depend on how many
    images there are, so that they have no floor where the held-out images are fewer than the samples.
    """
    whole = {"images": f"{samples.count} samples", "references": reference.title}
    moments = Comparison(samples.moments, reference.moments, None, whole, reference.stored)
    if not reference.rows:
        return moments, None
    some = {"images": f"{count(few)} samples", "references": f"{count(reference.rows)} of {reference.title}"}
    if held_out is not None:
        some = {"held_out": f"{count(few)} real held-out images"} | some
    return moments, Comparison(few, reference.rows, held_out, some)


def select_rows(rows: PerImage, chosen: Tensor) -> PerImage:
    return {name: values[chosen] for name, values in rows.items()}


def load_samples(folder: Path) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Pixels uint8 [N, H, W, 3], labels [N] (None for samples without classes), and the record of their sampling."""
    pixels = open_archive(folder / "samples.npz")
    with np.load(folder / "samples.npz") as archive:
        labels = archive.get("arr_1")
    record = read_json(folder / "samples.json")
    return pixels, None if labels is None or (labels < 0).any() else labels, record
