"""The task of measuring a run: from images, reconstructions and samples to numbers that carry their protocol."""

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code, stack_ids
from pipeline.images.eight_bits import levels
from pipeline.measuring.code_usage import usage_of
from pipeline.metrics.base import Features
from pipeline.metrics.cmmd import BANDWIDTH, SCALE, cmmd
from pipeline.metrics.copies import near_copies
from pipeline.metrics.density_coverage import density_coverage
from pipeline.metrics.fidelity import psnr, ssim
from pipeline.metrics.frechet import Gaussian, Moments, frechet_distance
from pipeline.metrics.inception_score import CHUNK, inception_score_chunks
from pipeline.metrics.kernel import kernel_distance
from pipeline.metrics.perturbed import Exchange, Noise, as_perturbed
from pipeline.metrics.precision_recall import precision_recall
from pipeline.nn.feature_distance import Backbone, perceptual_distance

VERSIONS = ("torch", "numpy", "scikit-learn", "diffusers")
CEILING = 100.0  # dB, for an image that is rebuilt exactly
DENSE = 5  # neighbours of density and coverage, as published
CALLED = {"inception": "FID", "inception_spatial": "sFID", "dinov2": "FD-DINOv2"}
MANIFOLD = (
    ("precision", "share of samples that lie where real images lie", "share"),
    ("recall", "share of real images that lie where samples lie", "share"),
    ("density", "how crowded with real images the places of samples are; 1 on average for equal distributions", ""),
    ("coverage", "share of real images with a sample nearer than their fifth nearest real image", "share"),
)
Rows = dict[str, Tensor]  # what is known of a set of images: a row an image under every name


@dataclass
class Number:
    """One result. `held_out` is the same number for as many real images that no training saw: the floor."""

    title: str
    value: float
    better: str  # higher, lower or neither
    meaning: str  # in one sentence
    protocol: dict[str, Any]
    unit: str = ""
    held_out: float | None = None
    ratio: float | None = None  # value / held_out, where that says something
    details: dict[str, float] = field(default_factory=dict)
    headline: bool = False  # shown at the head of the report

    def plain(self) -> dict[str, Any]:
        """As metrics.json holds it."""
        return asdict(self)


def spread(accelerator: Accelerator, count: int, measure: Callable[[Tensor], Rows], batch: int = 64) -> Rows:
    """The rows of images 0 .. count - 1, which `measure` gives for indices [B]; every process does a part of them."""
    own = own_batches(accelerator, count, batch)
    parts = [{name: rows.cpu() for name, rows in measure(part).items()} for part in own]
    parts = gather_object(parts) if accelerator.num_processes > 1 else parts
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def own_batches(accelerator: Accelerator, count: int, batch: int) -> list[Tensor]:
    """This process's run of the batches that indices 0 .. count - 1 fall into, all but the last of `batch` indices.

    A batch is the same however many processes there are, and with it the rounding of what networks make of it.
    """
    batches, share = torch.arange(count).split(batch) if count else (), accelerator.num_processes
    first, last = (len(batches) * (accelerator.process_index + i) // share for i in (0, 1))
    return list(batches[first:last])


def even(labels: Tensor | None, total: int, count: int) -> Tensor:
    """Indices [count] of `total` images, evenly spaced; with labels [total], evenly through every class."""
    order = torch.arange(total) if labels is None else labels.argsort(stable=True)
    places = (torch.arange(count, dtype=torch.float64) + 0.5) * (total / count)
    return order[places.long()].sort().values


def fidelity(images: Tensor, rebuilt: Tensor, backbone: Backbone) -> Rows:
    """PSNR, SSIM (of 8-bit pixels) and perceptual distance of every pair of images [B, 3, H, W] in [-1, 1]."""
    pixels, others = levels(images.cpu()), levels(rebuilt.cpu())
    return {
        "psnr": psnr(pixels, others).clamp(max=CEILING),
        "ssim": ssim(pixels, others),
        "perceptual": perceptual_distance(backbone, images, rebuilt.clamp(-1, 1)),
    }


def reconstruction_numbers(
    held_out: Rows, rebuilt: Rows, features: list[Features], perceptual: dict[str, Any], protocol: dict[str, Any]
) -> Iterator[tuple[str, Number]]:
    """`held_out` and `rebuilt` hold a row an image under every feature's name; `rebuilt` also what `fidelity` gives.

    `perceptual` describes the backbone of the perceptual distance.
    """
    count = len(rebuilt["psnr"])
    protocol = {"images": f"{count} held-out images and their reconstructions"} | protocol
    pixels = {"pixels": "rounded to 8 bits", "average": f"over images, each at most {CEILING:g} dB"} | protocol
    window = {"window": "gaussian 11, sigma 1.5; the largest odd window that fits on smaller images"}
    meaning = "how far reconstructions are from their images, pixel by pixel"
    yield "psnr", Number("PSNR", mean(rebuilt["psnr"]), "higher", meaning, pixels, "dB", headline=True)
    meaning = "agreement of local brightness, contrast and structure; 1 is equality"
    yield (
        "ssim",
        Number("SSIM", mean(rebuilt["ssim"]), "higher", meaning, {"pixels": pixels["pixels"]} | window | protocol),
    )
    kind = perceptual["kind"]
    meaning = f"how far reconstructions are from their images in the feature maps of the {kind}; 0 is equality"
    where = {"features": perceptual} | protocol
    yield (
        f"perceptual_{kind}",
        Number(f"Perceptual distance, {kind}", mean(rebuilt["perceptual"]), "lower", meaning, where),
    )
    for feature in features:
        value = frechet_distance(Moments.of(rebuilt[feature.name]), Moments.of(held_out[feature.name]))
        meaning = "how far reconstructions as a set are from their images as a set"
        where = {"features": feature.describe()} | protocol
        title = f"Fréchet distance of reconstructions, {feature.name}"
        yield f"rfd_{feature.name}", Number(title, value, "lower", meaning, where)


def perturbed_numbers(
    accelerator: Accelerator,
    neck: Bottleneck,
    ways: list[Exchange | Noise],
    code: Code,
    see: Callable[[Code], Rows],
    held_out: Rows,
    features: list[Features],
    seed: int,
    protocol: dict[str, Any],
) -> Iterator[tuple[str, Number]]:
    """pFID by features: the mean of the Fréchet distances of reconstructions of `code`, perturbed in all `ways`.

    `code` is that of the images whose rows `held_out` has under every feature's name; `see` decodes a code and gives
    such rows. Each way is drawn from `seed` and the image's number alone, so that no split over batches or processes
    changes it. Every process takes part, and has the numbers.
    """
    found: dict[str, dict[str, float]] = {feature.name: {} for feature in features}
    for way in ways:
        look = lambda places, way=way: see(as_perturbed(neck, code[places], way, places.tolist(), seed))  # noqa: E731
        rows = spread(accelerator, len(code), look)
        for name, distances in found.items():
            distances[str(way)] = frechet_distance(Moments.of(rows[name]), Moments.of(held_out[name]))
    meaning = "how far reconstructions of perturbed codes as a set are from their images as a set"
    for feature in features:
        distances = found[feature.name]
        where = {
            "images": f"{len(code)} held-out images and reconstructions of their perturbed codes",
            "ways": f"mean over {len(distances)}",
            "seed": seed,
            "features": feature.describe(),
        }
        title = f"Fréchet distance of perturbed codes, {feature.name}"
        value = sum(distances.values()) / len(distances)
        yield f"pfd_{feature.name}", Number(title, value, "lower", meaning, where | protocol, details=distances)


def sample_numbers(
    samples: Rows, held_out: Rows, train: Rows, features: list[Features], neighbours: int, protocol: dict[str, Any]
) -> Iterator[tuple[str, Number]]:
    """Distances of the samples to the training split, each beside that of as many held-out images."""
    count = len(samples[features[0].name])
    assert all(len(rows[features[0].name]) == count for rows in (samples, held_out))
    protocol = {
        "images": f"{count} samples",
        "held_out": f"{count} real held-out images",
        "references": f"{len(train[features[0].name])} images of the training split",
    } | protocol
    for feature in features:
        sets = [{name: Moments.of(rows[name]) for name in feature.statistics()} for rows in (samples, train, held_out)]
        yield from frechet_numbers(feature, *sets, protocol, headline=feature is features[0])
        rows = [rows[feature.name] for rows in (samples, held_out, train)]
        yield from row_numbers(feature, *rows, neighbours, protocol)


def frechet_numbers(
    feature: Features,
    samples: Mapping[str, Gaussian | Moments],
    references: Mapping[str, Gaussian | Moments],
    held_out: Mapping[str, Gaussian | Moments] | None,
    protocol: dict[str, Any],
    headline: bool = False,
) -> Iterator[tuple[str, Number]]:
    """Of what `references` knows among the statistics of a feature; `held_out` gives the floor, where there is one."""
    meaning = "how far samples as a set are from real images as a set, in mean and covariance"
    for name, described in feature.statistics().items():
        if name not in references:
            continue
        value = frechet_distance(samples[name], references[name])
        floor = frechet_distance(held_out[name], references[name]) if held_out else None
        ratio = value / floor if floor is not None and floor > 0 else None
        title = f"Fréchet distance, {name.replace('_', ' ')}" + (f" ({CALLED[name]})" if name in CALLED else "")
        where = {"features": described} | protocol
        first = headline and name == feature.name
        yield f"fd_{name}", Number(title, value, "lower", meaning, where, "", floor, ratio, headline=first)


def row_numbers(
    feature: Features,
    samples: Tensor,
    held_out: Tensor | None,
    references: Tensor,
    neighbours: int,
    protocol: dict[str, Any],
) -> Iterator[tuple[str, Number]]:
    """The numbers that compare rows, image by image; `held_out` gives the floor, where there is one."""
    name, where = feature.name, {"features": feature.describe()} | protocol
    value, floor = _beside(kernel_distance, samples, held_out, references)
    meaning = "the same in a cubic polynomial kernel; its mean is 0 for equal distributions, so it can be negative"
    kernel = {"kernel": "(x.y / width + 1)^3, unbiased, all images at once"} | where
    yield f"kd_{name}", Number(f"Kernel distance, {name}", value, "lower", meaning, kernel, held_out=floor)
    if name == "clip":
        value, floor = _beside(cmmd, samples, held_out, references)
        meaning = "the same for embeddings of unit length in a Gaussian kernel; 0 for equal sets"
        kernel = {"kernel": f"exp(-|x - y|^2 / (2 {BANDWIDTH:g}^2)), biased, times {SCALE:g}"} | where
        yield f"cmmd_{name}", Number("CMMD", value, "lower", meaning, kernel, held_out=floor)
    for measure, names, k in ((precision_recall, MANIFOLD[:2], neighbours), (density_coverage, MANIFOLD[2:], DENSE)):
        values, floors = _beside(partial(measure, neighbours=k), samples, held_out, references)
        for (key, meaning, unit), value, floor in zip(names, values, floors or (None, None)):
            near = {"neighbours": k} | where
            yield f"{key}_{name}", Number(f"{key.capitalize()}, {name}", value, "higher", meaning, near, unit, floor)


def _beside(measure: Callable, samples: Tensor, held_out: Tensor | None, references: Tensor) -> tuple[Any, Any]:
    """The measure of the samples, and of the held-out images where there are any."""
    return measure(samples, references), None if held_out is None else measure(held_out, references)


def score_numbers(
    value: float, count: int, held_out: Tensor | None, feature: Features, protocol: dict[str, Any]
) -> Iterator[tuple[str, Number]]:
    """The inception score of `count` samples; the floor is that of as many held-out images, by their logits."""
    meaning = "how sure Inception is of a sample's class, and how many classes it sees; 1 for samples all alike to it"
    where = {"images": f"{count} samples", "chunks": f"mean over {CHUNK} at a time"}
    where["features"] = feature.describe() | {"what": "class logits, without the bias", "width": 1008}
    floor = None
    if held_out is not None and len(held_out) == count:
        floor, where = inception_score_chunks(held_out), where | {"held_out": f"{count} real held-out images"}
    yield "inception_score", Number("Inception score", value, "higher", meaning, where | protocol, held_out=floor)


def copy_numbers(
    samples: Rows, held_out: Rows, train: Rows, spaces: dict[str, dict[str, Any]], protocol: dict[str, Any]
) -> Iterator[tuple[str, Number]]:
    """`spaces` describes the features, by name, in which nearest neighbours are looked for."""
    meaning = "share of samples less than half as far from their nearest training image as from the second nearest"
    for place, (name, description) in enumerate(spaces.items()):
        found = near_copies(samples[name], held_out[name], train[name])
        where = {
            "images": f"{len(samples[name])} samples",
            "held_out": f"{len(held_out[name])} real held-out images",
            "references": f"{len(train[name])} images of the training split",
            "distance": "root mean square over the features' width",
            "features": description,
        }
        details = {
            "share_closer_than_99_percent_of_held_out": found.closer,
            "median_distance": found.median,
            "median_distance_of_held_out": found.median_held_out,
        }
        own, floor = found.share, found.share_held_out
        title = f"Near copies, {name.removeprefix('near_')}"
        number = Number(
            title, own, "lower", meaning, where | protocol, "share", floor, None, details, place == len(spaces) - 1
        )
        yield f"near_copies_{name.removeprefix('near_')}", number


def accuracy_numbers(
    samples: Rows, held_out: Rows, judge: dict[str, Any], protocol: dict[str, Any]
) -> Iterator[tuple[str, Number]]:
    """Class accuracy of the samples, and of the judge itself on real images: nothing where there are no classes."""
    if judge["kind"] != "classifier" or "labels" not in held_out:
        return
    real = accuracy(held_out)
    images = f"{len(held_out['labels'])} real held-out images"
    if "labels" in samples:
        where = {"judge": judge, "images": f"{len(samples['labels'])} samples", "held_out": images} | protocol
        meaning = "share of samples that the judge puts into the class that was asked for"
        number = Number("Class accuracy", accuracy(samples), "higher", meaning, where, "share", real, headline=True)
        yield "class_accuracy", number
    meaning = "share of real images that the judge puts into their class: what its verdict on samples is worth"
    own = {"judge": judge, "images": images} | {key: protocol[key] for key in ("precision", "versions")}
    yield "judge_accuracy", Number("Accuracy of the judge", real, "higher", meaning, own, "share")


def code_numbers(ids: Tensor | None, vocab: int) -> Iterator[tuple[str, Number]]:
    """How much of the codebook the stored ids [B, N] or [B, N, codebooks] use; nothing for continuous codes."""
    if ids is None:
        return
    usage, perplexity = usage_of(stack_ids(ids), vocab)
    protocol = {"images": f"{len(ids)} of the training split, as they are", "codes": vocab}
    meaning = "share of the codes that occur at all, in the mean over codebooks"
    yield "code_usage", Number("Codebook usage", usage, "higher", meaning, protocol, "share", headline=True)
    meaning = "exp of the entropy of how often each code occurs: as many codes, used evenly, would be as rich"
    yield "code_perplexity", Number("Codebook perplexity", perplexity, "higher", meaning, protocol)


def accuracy(rows: Rows) -> float:
    return mean(rows["guess"] == rows["labels"])


def mean(rows: Tensor) -> float:
    return rows.double().mean().item()


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in VERSIONS}
