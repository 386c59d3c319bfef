"""Measures samples, reconstructions and codes beside real images, and writes the report."""

from pathlib import Path
from typing import Any

import torch

from pipeline.features.passes import evenly_spaced
from pipeline.files.writing import write_json
from pipeline.images import grids
from pipeline.images.reading import Images
from pipeline.images.rendering import rendered
from pipeline.latent_pipeline import LatentPipeline
from pipeline.latents.store import LatentStore
from pipeline.measuring.numbers import describe_left_out
from pipeline.measuring.reference import fingerprint_reference
from pipeline.measuring.samples import RealImages, SampleMeasuring, load_samples
from pipeline.measuring.tokenizer import TokenizerMeasuring, suited_metrics
from pipeline.metrics.base import ImageSet, Measurement, TokenizerInputs, TokenizerMetric, report_metrics
from pipeline.recipes.schema import Recipe, settings
from pipeline.reporting.curves import draw_curves
from pipeline.reporting.page import Picture
from pipeline.reporting.run_page import render_report, save_report
from pipeline.runs.milestones import chosen_decoder
from pipeline.runs.precision import arithmetic
from pipeline.runs.workspace import Workspace
from pipeline.sampling.interpolation import interpolate
from pipeline.sampling.many_images import assemble

READS = ("tokenizer", "joint", "latents", "generator", "decoder", "samples")
WRITES = "report"
IMAGES = ("train", "held_out")
PRECISION = "evaluate"
CODES = 50_000  # stored codes at most that their use is counted on
BETWEEN = 4  # rows of interpolations, each of a class


def uses(recipe: Recipe) -> Any:
    reference = fingerprint_reference(recipe)
    prepared = recipe.data.preparation
    return recipe.evaluate, reference, prepared, recipe.seed, recipe.precision.evaluate, recipe.weights.files


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    train, held_out = Images(recipe.data, "train"), Images(recipe.data, "held_out")
    of_samples = SampleMeasuring.of_run(recipe, work, train, held_out, out / "judge")
    pipe = assemble(recipe, chosen_decoder(recipe, work.artefact("decoder")), work.artefact("generator"))
    pipe.to(work.accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    of_tokenizer = tokenizer_measuring(recipe, pipe, of_samples)
    pixels, labels, record = load_samples(work.artefact("samples"))
    samples = of_samples.read_samples(pixels, labels)
    more = lambda *batch: of_tokenizer.rows(of_tokenizer.reconstruct(*batch))  # noqa: E731
    real = of_samples.read_real(train, held_out, samples.count, more)
    if not work.accelerator.is_main_process:
        return
    groups: dict[str, dict[str, Measurement]] = {}
    for metric, numbers in of_samples.measure(samples, real, record):
        groups.setdefault(metric.group, {}).update(numbers)
    for metric, numbers in of_tokenizer.measure(tokenizer_inputs(recipe, work, of_tokenizer, real)):
        groups.setdefault(metric.report_group, {}).update(numbers)
    left_out = describe_left_out(of_samples.left_out | of_tokenizer.left_out)
    for line in left_out:
        print(f"evaluate leaves out {line}")
    flat = {key: {"group": name} | number.as_dict() for name, group in groups.items() for key, number in group.items()}
    write_json(out / "metrics.json", flat, allow_nan=False)
    figures = draw(recipe, work, out, held_out, pipe)
    notes = work.history(READS)
    save_report(out, recipe.name, describe(recipe, train, held_out, left_out), figures, notes, settings(recipe))
    render_report(work.root, out)


def tokenizer_measuring(recipe: Recipe, pipe: LatentPipeline, of_samples: SampleMeasuring) -> TokenizerMeasuring:
    """Measures the pipeline's tokenizer by those metrics that its codes are suited to."""
    tokenizer = pipe.tokenizer.eval()
    metrics = suited_metrics(report_metrics(recipe.evaluate, TokenizerMetric), tokenizer.spec)
    word = recipe.precision.evaluate
    return TokenizerMeasuring(tokenizer, of_samples.extractors, metrics, recipe.seed, tokenizer.encode, precision=word)


def tokenizer_inputs(
    recipe: Recipe, work: Workspace, measuring: TokenizerMeasuring, real: RealImages
) -> TokenizerInputs:
    """Of the training split the stored ids alone are given: codes without ids are large, and no metric needs them."""
    store, ids = LatentStore(work.artefact("latents")), {}
    if store.spec.vocab:
        ids = {"ids": store.plain(torch.arange(min(len(store), CODES))).code.ids}
    sets = ImageSet(ids, {}), ImageSet(real.held_out.narrow, real.protocol, real.held_out.moments)
    networks = measuring.extractors, work.accelerator
    return TokenizerInputs(
        measuring.tokenizer, recipe.data.size, recipe.seed, *networks, *sets, measuring.tokenizer.encode
    )


def draw(recipe: Recipe, work: Workspace, out: Path, held_out: Images, pipe: LatentPipeline) -> list[Picture]:
    """The pictures of the report, written beside it."""
    pixels, labels, _ = load_samples(work.artefact("samples"))
    size = pixels.shape[1]
    grids.samples_by_class(pixels, labels, held_out.class_names).save(out / "samples.png")
    rows = "one class per row" if labels is not None else "in the order of their seeds"
    figures = [Picture("Samples", f"Samples, {rows}; not selected.", out / "samples.png", True)]
    if len(held_out):
        figures.append(draw_reconstructions(held_out, grids.columns(size), pipe, out / "reconstructions.png"))
    if not pipe.objective.discrete:  # ids start from no noise
        figures.append(draw_between(recipe, pipe, out / "interpolation.png"))
    if draw_curves(logs(recipe, work), out / "curves.png"):
        figures.append(Picture("Training", "Logged values by optimiser step.", out / "curves.png", wide=True))
    return figures


@torch.no_grad()
def draw_reconstructions(held_out: Images, columns: int, pipe: LatentPipeline, path: Path) -> Picture:
    """As many held-out images as there are `columns`, beside what the pipeline's tokenizer makes of them."""
    images = held_out.plain(evenly_spaced(None, len(held_out), min(len(held_out), columns))).images
    code = pipe.tokenizer.encode(images.to(pipe.device))
    grids.reconstructions(images, rendered(pipe.tokenizer, code).cpu()).save(path)
    caption = f"Held-out images, their reconstructions, and the absolute difference times {grids.AMPLIFIED}."
    return Picture("Reconstructions", caption, path, True)


def draw_between(recipe: Recipe, pipe: LatentPipeline, path: Path) -> Picture:
    """Interpolations of a few classes, evenly through them."""
    classes = pipe.num_classes
    labels = evenly_spaced(None, classes, min(classes, BETWEEN)).tolist() if classes else None
    count = len(labels) if labels else BETWEEN
    seeds = [(recipe.seed + 2 * i, recipe.seed + 2 * i + 1) for i in range(count)]
    names = [pipe.id2label.get(label, str(label)) for label in labels or []]
    with arithmetic(pipe.device, recipe.precision.sample):
        rows = interpolate(pipe, labels, seeds)
    grids.rows_of(rows.float(), names).save(path)
    each = "Each row one class" if labels else "Each row"
    caption = f"{each}: starting noise on the arc from one seed's to another's, sampled as the samples are."
    return Picture("Interpolation", caption, path, True)


def logs(recipe: Recipe, work: Workspace) -> dict[str, Path]:
    """The training logs there are, by what was trained, in order."""
    tokenizer = work.artefact("tokenizer")
    logs = {f"tokenizer {phase}": tokenizer / "phases" / phase / "metrics.jsonl" for phase in recipe.tokenizer.phases}
    logs["joint"] = work.artefact("joint") / "metrics.jsonl"
    logs["generator"] = work.artefact("generator") / "metrics.jsonl"
    logs["decoder"] = work.artefact("decoder") / "posttraining" / "metrics.jsonl"
    return {title: path for title, path in logs.items() if path.exists()}


def describe(recipe: Recipe, train: Images, held_out: Images, left_out: list[str]) -> str:
    classes = f", {train.num_classes} classes" if train.num_classes else ""
    kinds = [recipe.tokenizer.model["kind"], recipe.generator.network["kind"], recipe.generator.objective["kind"]]
    return (
        f"{len(train)} training and {len(held_out)} held-out images of {recipe.data.size} × {recipe.data.size} pixels"
        f"{classes} · {' · '.join(kind.replace('_', ' ') for kind in kinds)}"
        + "".join(f" · left out: {line}" for line in left_out)
    )
