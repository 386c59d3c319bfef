"""Samples beside real images: what is known of both, and the numbers of a report and of a sweep."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.features.caption_judge import CaptionJudge, find_clip, fit_caption_judge, load_caption_judge
from pipeline.features.comparison import Comparison, ImageSets
from pipeline.features.judge import fit_judge
from pipeline.features.networks import FeatureExtractors
from pipeline.features.passes import ImageRows, PerImage, count, evenly_spaced, process_batches
from pipeline.files.writing import read_json
from pipeline.images.ahead import read_plain
from pipeline.images.files import open_archive
from pipeline.images.reading import ImageBatch, Images
from pipeline.images.stored_pixels import from_pixels
from pipeline.measuring.image_statistics import NUMBER, ImageStatistics, gather_statistics
from pipeline.measuring.numbers import measure_metric
from pipeline.measuring.protocols import computation
from pipeline.measuring.reference import Reference, load_reference
from pipeline.metrics.base import Measurement, SampleInputs, SampleMetric, report_metrics
from pipeline.recipes.arithmetic import Precision
from pipeline.recipes.schema import Recipe
from pipeline.runs.precision import arithmetic
from pipeline.runs.workspace import Workspace

CIRCUMSTANCES = ("command", "finished", "device", "processes", "python", "versions", "commit", "images", "seed")
Rows = Callable[[ImageBatch, Tensor], ImageRows]  # images and their numbers [B] to rows
CAPTION_JUDGE = "caption_judge"  # folder of the judge of captions, beside the judge's
FLOOR = "floor_"  # before the names of moments of held-out images that are as many as the samples


@dataclass(frozen=True)
class RealImages:
    """What samples are measured against, read once however many sets of samples there are."""

    train: ImageStatistics
    held_out: ImageStatistics
    reference: Reference | None  # where the recipe has one; else samples are measured against `train`
    sizes: dict[str, int]  # images of the splits
    precision: Precision = "fp32"  # in which the features of all images were computed

    @property
    def protocol(self) -> dict[str, Any]:
        return computation(self.precision) | {"splits": self.sizes}


class CaptionNumbers:
    """Captions by number, the same in every process, since all number the same captions in the same order."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def numbers(self, captions: Sequence[str]) -> Tensor:
        """The number of each, [n]; new ones get the next."""
        return torch.tensor([self.texts.setdefault(caption, len(self.texts)) for caption in captions])


def caption_judge(recipe: Recipe, work: Workspace, train: Images, folder: Path) -> CaptionJudge:
    """CLIP, or the judge of the run's report where there is one, else one trained on `train` and saved in `folder`."""
    device = work.accelerator.device
    if work.accelerator.is_main_process and find_clip(recipe.weights.files) is None:
        fit_caption_judge(train, recipe.seed, device, folder, earlier=work.root / "report" / folder.name)
    work.accelerator.wait_for_everyone()
    return load_caption_judge(recipe.weights.files, recipe.seed, folder, device)


@dataclass(frozen=True)
class SampleMeasuring:
    """Measures sets of samples as the `evaluate` section of a recipe says. Every process takes part.

    Distances of moments are of all images that are evaluated, and hold none of them; what compares all pairs of images
    is of evaluate.neighbour_images of them.
    """

    recipe: Recipe
    extractors: FeatureExtractors
    metrics: list[SampleMetric]
    accelerator: Accelerator
    held_out: int  # images of that split that are evaluated
    left_out: dict[str, str] = field(default_factory=dict)  # why a number is not among those measured, by its name
    captions: CaptionNumbers = field(default_factory=CaptionNumbers)

    @classmethod
    def of_run(
        cls, recipe: Recipe, work: Workspace, train: Images, held_out: Images, folder: Path
    ) -> "SampleMeasuring":
        """The judge is that of the run's report where there is one, else trained on `train`, and saved in `folder`."""
        part, device = recipe.evaluate, work.accelerator.device
        if work.accelerator.is_main_process:
            fit_judge(train, recipe.seed, device, folder, earlier=work.root / "report" / "judge")
        work.accelerator.wait_for_everyone()
        sizes = (min(recipe.data.sides), recipe.seed, device)
        extractors = FeatureExtractors.load(folder, part.features, part.resize, recipe.weights.files, *sizes)
        if recipe.generator is not None and recipe.generator.reads_text:
            extractors.caption_judge = caption_judge(recipe, work, train, folder.with_name(CAPTION_JUDGE))
        metrics = [] if recipe.generator is None else report_metrics(recipe.evaluate, SampleMetric)
        return cls(recipe, extractors, metrics, work.accelerator, min(len(held_out), part.images))

    def compared(self, samples: int) -> int:
        """Of so many `samples`, those whose moments are compared: as many as held-out images, where there are any."""
        return min(filter(None, (samples, self.recipe.evaluate.images, self.held_out)))

    @torch.no_grad()
    def rows(self, images: Tensor) -> ImageRows:
        """What metrics of samples must know of images [B, C, H, W] in [-1, 1]."""
        images = images.to(self.extractors.device)
        with arithmetic(self.extractors.device, self.recipe.precision.evaluate):
            rows = self.extractors.rows(images)
        for metric in self.metrics:
            more = metric.rows(images, self.extractors), metric.neighbour_rows(images, self.extractors)
            rows |= ImageRows(*more)
        return rows

    def read_real(self, train: Images, held_out: Images, samples: int, more: Rows | None = None) -> RealImages:
        """What is known of real images, for so many `samples`; `more` returns more of held-out ones."""
        given = self.recipe.evaluate.reference != "train"
        floor = None if given or not self.held_out else self.compared(samples)
        splits = self.read_split(train), self.read_split(held_out, floor, more)
        reference = load_reference(self.recipe, self.extractors, self.accelerator) if given else None
        sizes = {"train": len(train), "held_out": len(held_out)}
        return RealImages(*splits, reference, sizes, self.recipe.precision.evaluate)

    def read_held_out(self, train: Images, held_out: Images, more: Rows) -> RealImages:
        """What is known where there are no samples: of held-out images alone, and `more` of them."""
        sizes = {"train": len(train), "held_out": len(held_out)}
        return RealImages(
            ImageStatistics(), self.read_split(held_out, more=more), None, sizes, self.recipe.precision.evaluate
        )

    def read_split(self, images: Images, floor: int | None = None, more: Rows | None = None) -> ImageStatistics:
        """Of at most evaluate.images images of a split, evenly spaced in it; also the moments of `floor` of them.

        Those are spaced evenly through the classes, as samples are that they are the floor of.
        """
        chosen = evenly_spaced(None, len(images), min(len(images), self.recipe.evaluate.images))
        near = evenly_spaced(None, len(chosen), min(len(chosen), self.recipe.evaluate.neighbour_images))
        few = torch.zeros(len(chosen), dtype=torch.bool)
        if floor is not None and floor < len(chosen):
            labels = torch.tensor([images.source.label_of(i) for i in chosen.tolist()]) if images.num_classes else None
            few[evenly_spaced(labels, len(chosen), floor)] = True

        captions = None
        if self.extractors.caption_judge is not None and images.split == "held_out":
            captions = self.captions.numbers([(images.source.captions(i) or ("",))[0] for i in chosen.tolist()])
        batches = read_plain(images, [chosen[each] for each in process_batches(self.accelerator, len(chosen))])

        def measure(indices: Tensor) -> ImageRows:
            batch = next(batches)
            rows = self.rows(batch.images)
            if batch.condition is not None and batch.condition.labels is not None:
                rows |= ImageRows({"labels": batch.condition.labels})
            if captions is not None:
                rows |= ImageRows({"captions": captions[indices]})
            if more:
                rows |= more(batch, indices)
            if few[indices].any():
                rows |= ImageRows(summed={FLOOR + n: rows.summed[n][few[indices]] for n in self.extractors.statistics})
            return rows

        return gather_statistics(self.accelerator, len(chosen), measure, near)

    def read_samples(
        self, pixels: np.ndarray, labels: np.ndarray | None, prompts: list[str] | None = None
    ) -> ImageStatistics:
        """Of all samples, uint8 [N, H, W, 3]: moments of all for a given reference, else of as many as the floor's."""
        judged = prompts is not None and self.extractors.caption_judge is not None
        captions = self.captions.numbers(prompts) if judged else None
        part, classes = self.recipe.evaluate, None if labels is None else torch.from_numpy(labels)
        chosen = evenly_spaced(classes, len(pixels), min(len(pixels), part.images))
        near, few = (
            chosen[evenly_spaced(None if classes is None else classes[chosen], len(chosen), count)]
            for count in (min(len(chosen), part.neighbour_images), self.compared(len(pixels)))
        )
        summed = torch.ones(len(pixels), dtype=torch.bool)
        if part.reference == "train":
            summed = torch.zeros_like(summed).index_fill(0, few, True)

        def measure(indices: Tensor) -> ImageRows:
            rows, kept = self.rows(from_pixels(pixels[indices.numpy()])), summed[indices]
            moments = {name: values[kept] for name, values in rows.summed.items()}
            labels = {} if classes is None else {"labels": classes[indices]}
            asked = {} if captions is None else {"captions": captions[indices]}
            return ImageRows(rows.narrow | labels | asked, rows.wide, moments, rows.logits)

        return gather_statistics(self.accelerator, len(pixels), measure, near)

    def measure(
        self, samples: ImageStatistics, real: RealImages, record: dict[str, Any]
    ) -> Iterator[tuple[SampleMetric, dict[str, Measurement]]]:
        """Each metric with its numbers of a set of samples, by key; `record` says how they were sampled."""
        inputs = self.inputs(samples, real, record)
        for metric in self.metrics:
            if metric.needs <= inputs.available:
                yield metric, measure_metric(metric, inputs, self.left_out)

    def inputs(self, samples: ImageStatistics, real: RealImages, record: dict[str, Any]) -> SampleInputs:
        """What the metrics are given: as many samples as held-out images are compared, where there are any."""
        sampling = {key: value for key, value in record.items() if key not in CIRCUMSTANCES}
        held_out = real.held_out
        fewest = min(filter(None, (count(samples.wide), count(held_out.wide))))
        few, floor = (
            select_rows(of.wide, evenly_spaced(labels_of(of), count(of.wide), min(fewest, count(of.wide))))
            for of in (samples, held_out)
        )
        if real.reference is None:
            moments = moments_against_training(self.compared(samples.count), samples, held_out, real.train)
            rows = against_training(few, floor, real.train.wide)
        else:
            known = None if self.recipe.evaluate.reference == "held_out" or not floor else floor
            moments, rows = against_reference(samples, few, known, real.reference)
        score = samples.score.value() if self.extractors.logits else None
        score_of_real = score is not None and held_out.count == samples.count
        return SampleInputs(
            self.extractors,
            moments,
            rows,
            samples.narrow,
            held_out.narrow,
            real.train.narrow,
            ImageSets(samples.wide, held_out.wide, real.train.wide, tuple(self.captions.texts)),
            samples.count,
            {"sampling": sampling} | real.protocol,
            score,
            held_out.score.value() if score_of_real else None,
        )


def labels_of(images: ImageStatistics) -> Tensor | None:
    """The labels of the images whose wide rows are kept."""
    return images.narrow["labels"][images.wide[NUMBER]] if "labels" in images.narrow else None


def against_training(samples: PerImage, held_out: PerImage, train: PerImage) -> Comparison:
    """The rows of samples beside those of the training split, and as many held-out images beside these."""
    assert not held_out or count(samples) == count(held_out)
    return Comparison(samples, train, held_out or None, counted(count(samples), count(held_out), count(train)))


def moments_against_training(
    few: int, samples: ImageStatistics, held_out: ImageStatistics, train: ImageStatistics
) -> Comparison:
    """The same of moments, those of so many samples; held-out images are as many, or all where they are fewer."""
    moments = {name: held_out.moments.get(FLOOR + name, of) for name, of in held_out.moments.items()}
    images = counted(few, few if held_out.count else 0, train.count)
    return Comparison(samples.moments, train.moments, moments or None, images)


def counted(samples: int, held_out: int, train: int) -> dict[str, str]:
    """What protocols say of how many images were compared with the training split."""
    return {
        "images": f"{samples} samples",
        "held_out": f"{held_out} real held-out images",
        "references": f"{train} images of the training split",
    }


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
