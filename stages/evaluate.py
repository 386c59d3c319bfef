"""Measures samples, reconstructions and codes beside real images, and writes the report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.captions.table import open_captions
from pipeline.components import find
from pipeline.features.passes import PerImage, evenly_spaced
from pipeline.files.writing import write_json
from pipeline.images import grids
from pipeline.images.reading import Images
from pipeline.images.rendering import rendered
from pipeline.latent_pipeline import LatentPipeline
from pipeline.latents.encoded_images import open_codes
from pipeline.measuring.numbers import describe_left_out
from pipeline.measuring.reference import fingerprint_reference
from pipeline.measuring.samples import RealImages, SampleMeasuring, load_samples
from pipeline.measuring.tokenizer import TokenizerMeasuring, suited_metrics
from pipeline.metrics.base import ImageSet, Measurement, TokenizerInputs, TokenizerMetric, report_metrics
from pipeline.recipes.schema import Recipe, settings
from pipeline.reporting.curves import draw_curves
from pipeline.reporting.held_out_plot import held_out_picture
from pipeline.reporting.page import Picture
from pipeline.reporting.run_page import render_report, save_report
from pipeline.runs.milestones import chosen_decoder
from pipeline.runs.precision import arithmetic
from pipeline.runs.training_folders import LOG, training_folders
from pipeline.runs.workspace import Workspace
from pipeline.sampling.held_out_prompts import find_text, prompts_of_recipe
from pipeline.sampling.interpolation import interpolate
from pipeline.sampling.many_images import assemble, read_prompts
from pipeline.saved_folders import load_component
from pipeline.tokenizers.base import Tokenizer
from pipeline.training.starting_tokenizer import build_starting_tokenizer, is_finetuned

READS = ("tokenizer",)
READS_WHERE_MADE = ("text", "joint", "latents", "generator", "decoder", "samples")
WRITES = "report"
IMAGES = ("train", "held_out")
PRECISION = "evaluate"
CODES = 50_000  # stored codes at most that their use is counted on
BETWEEN = 4  # rows of interpolations, each of a class or a prompt
PROMPTED, PROMPTED_ACROSS = 48, 8  # samples that are shown with their prompts, evenly through all, and in a row


def uses(recipe: Recipe) -> Any:
    reference = fingerprint_reference(recipe)
    prepared = recipe.data.preparation
    return recipe.evaluate, reference, prepared, recipe.seed, recipe.precision.evaluate, recipe.weights.files


@dataclass(frozen=True)
class Measured:
    """What a report shows of a line, on the main process."""

    made_of: tuple[str, ...]  # the artefacts that were measured
    groups: dict[str, dict[str, Measurement]]  # by heading and key
    figures: list[Picture]
    left_out: dict[str, str]  # why a number is not there, by its name


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    captions = open_captions(recipe, work.artefact, "held_out", "tokenizer")
    train, held_out = Images(recipe.data, "train"), Images(recipe.data, "held_out", captions)
    measuring = SampleMeasuring.of_run(recipe, work, train, held_out, out / "judge")
    measure = measure_tokenizer if recipe.generator is None else measure_line
    measured = measure(work, measuring, train, held_out, out)
    if measured is None:
        return
    left_out = describe_left_out(measured.left_out)
    for line in left_out:
        print(f"evaluate leaves out {line}")
    flat = {
        key: {"group": name} | number.as_dict()
        for name, group in measured.groups.items()
        for key, number in group.items()
    }
    write_json(out / "metrics.json", flat, allow_nan=False)
    measured.figures.extend(draw_trainings(logs(recipe, work, measured.made_of), out))
    notes, summary = work.history(measured.made_of), describe(recipe, train, held_out, left_out)
    save_report(out, recipe.name, summary, measured.figures, notes, settings(recipe))
    render_report(work.root, out)


def measure_line(
    work: Workspace, of_samples: SampleMeasuring, train: Images, held_out: Images, out: Path
) -> Measured | None:
    """Samples beside real images, and the tokenizer that decodes them; None on all processes but the main one."""
    recipe = of_samples.recipe
    decoder = chosen_decoder(recipe, work.artefact("decoder"))
    pipe = assemble(recipe, decoder, work.artefact("generator"), find_text(recipe, work))
    pipe.to(work.accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    of_tokenizer = tokenizer_measuring(pipe.tokenizer, of_samples)
    pixels, labels, record = load_samples(work.artefact("samples"))
    samples = of_samples.read_samples(pixels, labels, read_prompts(work.artefact("samples")))
    real = of_samples.read_real(train, held_out, samples.count, of_tokenizer.pass_through)
    if not work.accelerator.is_main_process:
        return None
    groups: dict[str, dict[str, Measurement]] = {}
    for metric, numbers in of_samples.measure(samples, real, record):
        groups.setdefault(metric.group, {}).update(numbers)
    inputs = tokenizer_inputs(of_tokenizer, of_samples, real, training_ids(recipe, work, pipe.tokenizer))
    for metric, numbers in of_tokenizer.measure(inputs):
        groups.setdefault(metric.report_group, {}).update(numbers)
    figures = draw(recipe, work, out, held_out, pipe)
    made_of = READS + READS_WHERE_MADE
    return Measured(made_of, groups, figures, of_samples.left_out | of_tokenizer.left_out)


def measure_tokenizer(
    work: Workspace, of_images: SampleMeasuring, train: Images, held_out: Images, out: Path
) -> Measured | None:
    """Reconstructions of held-out images by a tokenizer alone; None on all processes but the main one."""
    recipe, device = of_images.recipe, work.accelerator.device
    tokenizer = load_component(find("tokenizers", recipe.tokenizer.model["kind"]), work.artefact("tokenizer"))
    measuring = tokenizer_measuring(tokenizer.to(device), of_images)
    real = of_images.read_held_out(train, held_out, measuring.pass_through)
    start = build_starting_tokenizer(recipe).to(device) if is_finetuned(recipe) else None
    before = {} if start is None else measure_before(start, of_images, train, held_out)
    if not work.accelerator.is_main_process:
        return None
    groups: dict[str, dict[str, Measurement]] = {}
    for metric, numbers in measuring.measure(tokenizer_inputs(measuring, of_images, real, {})):
        compared = {key: replace(number, before=before.get(key)) for key, number in numbers.items()}
        groups.setdefault(metric.report_group, {}).update(compared)
    figures = []
    if len(held_out):
        figures.append(draw_reconstructions(held_out, tokenizer, out / "reconstructions.png", start))
    return Measured(READS, groups, figures, measuring.left_out)


def measure_before(start: Tokenizer, of_images: SampleMeasuring, train: Images, held_out: Images) -> dict[str, float]:
    """The numbers, by key, of the tokenizer as its training began."""
    measuring = tokenizer_measuring(start, of_images)
    real = of_images.read_held_out(train, held_out, measuring.pass_through)
    measured = [numbers for _, numbers in measuring.measure(tokenizer_inputs(measuring, of_images, real, {}))]
    return {key: number.value for numbers in measured for key, number in numbers.items()}


def tokenizer_measuring(tokenizer: Tokenizer, of_images: SampleMeasuring) -> TokenizerMeasuring:
    """Measures a tokenizer by those metrics of the report that its codes are suited to."""
    recipe, tokenizer = of_images.recipe, tokenizer.eval()
    metrics = suited_metrics(report_metrics(recipe.evaluate, TokenizerMetric), tokenizer.spec)
    word = recipe.precision.evaluate
    return TokenizerMeasuring(tokenizer, of_images.extractors, metrics, recipe.seed, tokenizer.encode, precision=word)


def training_ids(recipe: Recipe, work: Workspace, tokenizer: Tokenizer) -> PerImage:
    """The ids of training images: codes without ids are large, and no metric of a report needs them."""
    if not tokenizer.spec.vocab:
        return {}
    codes = open_codes(work.artefact("latents"), recipe, work.accelerator)
    return {"ids": codes.plain(torch.arange(min(len(codes), CODES))).code.ids}


def tokenizer_inputs(
    measuring: TokenizerMeasuring, of_images: SampleMeasuring, real: RealImages, ids: PerImage
) -> TokenizerInputs:
    """What is known of held-out images, and of training images the ids alone."""
    recipe, tokenizer = of_images.recipe, measuring.tokenizer
    sets = ImageSet(ids, {}), ImageSet(real.held_out.narrow, real.protocol, real.held_out.moments)
    networks = measuring.extractors, of_images.accelerator
    return TokenizerInputs(tokenizer, recipe.data.image_shape, recipe.seed, *networks, *sets, tokenizer.encode)


def draw(recipe: Recipe, work: Workspace, out: Path, held_out: Images, pipe: LatentPipeline) -> list[Picture]:
    """The pictures of the report, written beside it."""
    figures = [draw_samples(work.artefact("samples"), held_out, out / "samples.png")]
    if len(held_out):
        figures.append(draw_reconstructions(held_out, pipe.tokenizer, out / "reconstructions.png"))
    if not pipe.objective.discrete:  # ids start from no noise
        figures.append(draw_between(recipe, pipe, find_text(recipe, work), out / "interpolation.png"))
    return figures


def draw_samples(samples: Path, held_out: Images, path: Path) -> Picture:
    """The first samples, by class or each above its prompt."""
    (pixels, labels, _), prompts = load_samples(samples), read_prompts(samples)
    if prompts is None:
        grids.samples_by_class(pixels, labels, held_out.class_names).save(path)
        rows = "one class per row" if labels is not None else "in the order of their seeds"
    else:
        shown = range(0, len(pixels), -(-len(pixels) // PROMPTED))
        grids.captioned(pixels[list(shown)], [prompts[i] for i in shown], PROMPTED_ACROSS).save(path)
        rows = "each above its prompt"
    return Picture("Samples", f"Samples, {rows}; not selected.", path, True)


@torch.no_grad()
def draw_reconstructions(held_out: Images, tokenizer: Tokenizer, path: Path, start: Tokenizer | None = None) -> Picture:
    """A row of held-out images, above what the tokenizer makes of them, and made of them at the start of training."""
    columns = grids.columns(held_out.data.sides)
    batch = held_out.plain(evenly_spaced(None, len(held_out), min(len(held_out), columns)))

    def rebuild(model: Tokenizer) -> Tensor:
        there = batch.to(model.device)
        return rendered(model, model.encode(there.images, there.condition), there.condition).cpu()

    before = None if start is None else rebuild(start)
    grids.reconstructions(batch.images, rebuild(tokenizer), before).save(path)
    kinds = "reconstructions" if start is None else "reconstructions before and after training"
    caption = f"Held-out images, their {kinds}, and the absolute difference times {grids.AMPLIFIED}."
    return Picture("Reconstructions", caption, path, True)


def draw_between(recipe: Recipe, pipe: LatentPipeline, text: Path | None, path: Path) -> Picture:
    """Interpolations of a few classes, evenly through them, or of a few captions of held-out images."""
    classes = pipe.num_classes
    labels = evenly_spaced(None, classes, min(classes, BETWEEN)).tolist() if classes else None
    count = len(labels) if labels else BETWEEN
    seeds = [(recipe.seed + 2 * i, recipe.seed + 2 * i + 1) for i in range(count)]
    names = [pipe.id2label.get(label, str(label)) for label in labels or []]
    prompts = None if text is None else prompts_of_recipe(recipe, text)[0][:count]
    with arithmetic(pipe.device, recipe.precision.sample):
        rows = interpolate(pipe, labels, seeds, prompts)
    grids.rows_of(rows.float(), prompts or names).save(path)
    each = "Each row one prompt" if prompts else "Each row one class" if labels else "Each row"
    caption = f"{each}: starting noise on the arc from one seed's to another's, sampled as the samples are."
    return Picture("Interpolation", caption, path, True)


def logs(recipe: Recipe, work: Workspace, made_of: Sequence[str]) -> dict[str, Path]:
    """The training logs that these artefacts have, by what was trained, in order."""
    there = [one for one in training_folders(recipe) if one.artefact in made_of]
    paths = {one.title: work.root / one.artefact / one.inside / LOG for one in there}
    return {title: path for title, path in paths.items() if path.exists()}


def draw_trainings(logs: Mapping[str, Path], out: Path) -> Iterator[Picture]:
    """What was logged of trainings, by their titles, and the held-out losses of those that had previews."""
    if draw_curves(logs, out / "curves.png"):
        yield Picture("Training", "Logged values by optimiser step.", out / "curves.png", wide=True)
    for number, (title, log) in enumerate(logs.items()):
        held_out = held_out_picture("Training", title, log.parent, out / f"held_out_{number}.png")
        if held_out is not None:
            yield held_out


def describe(recipe: Recipe, train: Images, held_out: Images, left_out: list[str]) -> str:
    classes = f", {train.num_classes} classes" if train.num_classes else ""
    kinds = [part["kind"] for part in recipe.components.values()]
    return (
        f"{len(train)} training and {len(held_out)} held-out images of {' × '.join(map(str, recipe.data.sides))} pixels"
        f"{classes} · {' · '.join(kind.replace('_', ' ') for kind in kinds)}"
        + "".join(f" · left out: {line}" for line in left_out)
    )
