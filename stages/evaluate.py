"""Measures samples, reconstructions and codes beside real images, and writes the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.code import Code
from pipeline.draws import mix
from pipeline.images.reading import ImageBatch, Images
from pipeline.images.rendering import rendered
from pipeline.latent_pipeline import LatentPipeline
from pipeline.latents.store import LatentStore
from pipeline.measuring.evaluation import (
    Number,
    Rows,
    code_numbers,
    even,
    fidelity,
    perturbed_numbers,
    reconstruction_numbers,
    versions,
)
from pipeline.measuring.eyes import Eyes, eyes_of_run
from pipeline.measuring.sample_measuring import (
    Real,
    common_protocol,
    numbers_of_samples,
    read_samples,
    see_real,
    see_samples,
)
from pipeline.metrics.perturbed import grid
from pipeline.recipes.schema import Recipe, settings
from pipeline.reporting import pictures
from pipeline.reporting.curves import draw_curves
from pipeline.reporting.page import Picture
from pipeline.reporting.run_page import ARTEFACTS, render_report, save_report
from pipeline.runs.precision import autocast
from pipeline.runs.workspace import NOTE, Workspace
from pipeline.sampling.interpolation import interpolate
from pipeline.sampling.many_images import assemble
from pipeline.tokenizers.base import Tokenizer

READS = ("tokenizer", "joint", "latents", "generator", "decoder", "samples")
WRITES = "report"
CODES = 50_000  # stored codes at most that their use is counted on
BETWEEN = 4  # rows of interpolations, each of a class


def uses(recipe: Recipe) -> Any:
    return recipe.evaluate, recipe.data, recipe.seed, recipe.weights


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    train, held_out = Images(recipe.data, "train"), Images(recipe.data, "held_out")
    eyes = eyes_of_run(recipe, work, train, out / "judge")
    pipe = assemble(recipe, work.artefact("decoder"), work.artefact("generator")).to(work.accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    tokenizer = pipe.tokenizer.eval()
    pixels, labels, made = read_samples(work.artefact("samples"))
    samples = see_samples(recipe, eyes, pixels, labels, work.accelerator)
    look = lambda batch: see_rebuilt(recipe, eyes, tokenizer, batch)  # noqa: E731
    real = see_real(recipe, train, held_out, eyes, work.accelerator, look)
    shaken = measure_perturbed(work, recipe, eyes, tokenizer, real.held_out) if recipe.evaluate.perturbed else {}
    if not work.accelerator.is_main_process:
        return
    groups = {
        "Samples": dict(numbers_of_samples(recipe, eyes, samples, real, made)),
        "Reconstructions": measure_rebuilt(eyes, real) | shaken,
        "Codes": measure_codes(LatentStore(work.artefact("latents"))),
    }
    numbers = {name: {key: number.plain() for key, number in group.items()} for name, group in groups.items() if group}
    flat = {key: {"group": name} | number for name, group in numbers.items() for key, number in group.items()}
    (out / "metrics.json").write_text(json.dumps(flat, indent=2, allow_nan=False) + "\n")
    shown = draw(recipe, work, out, held_out, pipe, pixels, labels)
    notes = {name: read_note(work.root / name) for name in ARTEFACTS}
    save_report(out, recipe.name, describe(recipe, train, held_out), shown, notes, settings(recipe))
    render_report(work.root, out)


def see_rebuilt(recipe: Recipe, eyes: Eyes, tokenizer: Tokenizer, batch: ImageBatch) -> Rows:
    """Rows of the reconstructions of images, and their codes where these will be perturbed."""
    pixels = batch.images.to(eyes.device)
    with torch.no_grad():
        code = tokenizer.encode(pixels)
    again = rendered(tokenizer, code)
    rows = {}
    if recipe.evaluate.perturbed:
        rows = {"z": code.z} if code.ids is None else {"ids": code.ids}
    rows |= {f"rebuilt_{name}": seen for name, seen in eyes.see(again).items()}
    return rows | {f"rebuilt_{name}": value for name, value in fidelity(pixels, again, eyes.backbone).items()}


def measure_rebuilt(eyes: Eyes, real: Real) -> dict[str, Number]:
    """The distances of the reconstructions that `see_rebuilt` saw, by key."""
    new = real.held_out
    again = {name.removeprefix("rebuilt_"): rows for name, rows in new.items() if name.startswith("rebuilt_")}
    protocol = {"code": "the mode of the posterior"} | common_protocol(real.sizes)
    return dict(reconstruction_numbers(new, again, eyes.features, eyes.described["perceptual"], protocol))


def measure_codes(store: LatentStore) -> dict[str, Number]:
    """How codes are used; nothing for codes without ids, which are large, and none of which is looked at here."""
    if not store.spec.vocab:
        return {}
    codes = store.plain(torch.arange(min(len(store), CODES))).code
    return dict(code_numbers(codes.ids, store.spec.vocab))


def measure_perturbed(
    work: Workspace, recipe: Recipe, eyes: Eyes, tokenizer: Tokenizer, new: Rows
) -> dict[str, Number]:
    """The distances of perturbed reconstructions of `new`, by key. Every process takes part."""

    def see(code: Code) -> Rows:
        images = rendered(tokenizer, code.to(eyes.device))
        return {feature.name: feature.extract(images) for feature in eyes.features}

    code = Code(z=new.get("z"), ids=new.get("ids"))
    protocol = {"precision": "networks float32, statistics float64", "versions": versions()}
    seed = mix(recipe.seed, "perturbed")
    ways = grid(tokenizer.spec)
    return dict(
        perturbed_numbers(work.accelerator, tokenizer.neck, ways, code, see, new, eyes.features, seed, protocol)
    )


def draw(
    recipe: Recipe,
    work: Workspace,
    out: Path,
    held_out: Images,
    pipe: LatentPipeline,
    pixels: np.ndarray,
    labels: np.ndarray | None,
) -> list[Picture]:
    """The pictures of the report, written beside it."""
    size = pixels.shape[1]
    images = held_out.plain(even(None, len(held_out), min(len(held_out), pictures.columns(size)))).images
    with torch.no_grad():
        code = pipe.tokenizer.encode(images.to(work.accelerator.device))
    pictures.reconstructions(images, rendered(pipe.tokenizer, code).cpu()).save(out / "reconstructions.png")
    pictures.samples_by_class(pixels, labels, held_out.class_names).save(out / "samples.png")
    rows = "each row one class that was asked for" if labels is not None else "as they came"
    shown = [
        Picture("Samples", f"Samples, {rows}; not chosen.", out / "samples.png", True),
        Picture(
            "Reconstructions",
            f"Held-out images, their reconstructions, and the absolute difference times {pictures.AMPLIFIED}.",
            out / "reconstructions.png",
            True,
        ),
    ]
    if not pipe.objective.discrete:  # ids start from no noise
        shown.append(draw_between(recipe, pipe, out / "interpolation.png"))
    if draw_curves(logs(recipe, work), out / "curves.png"):
        shown.append(Picture("Training", "Logged values by optimiser step.", out / "curves.png", wide=True))
    return shown


def draw_between(recipe: Recipe, pipe: LatentPipeline, path: Path) -> Picture:
    """Interpolations of a few classes, evenly through them."""
    classes = pipe.num_classes
    labels = even(None, classes, min(classes, BETWEEN)).tolist() if classes else None
    count = len(labels) if labels else BETWEEN
    seeds = [(recipe.seed + 2 * i, recipe.seed + 2 * i + 1) for i in range(count)]
    names = [pipe.id2label.get(label, str(label)) for label in labels or []]
    with autocast(pipe.device, recipe.precision):
        rows = interpolate(pipe, labels, seeds)
    pictures.rows_of(rows.float(), names).save(path)
    each = "Each row one class" if labels else "Each row"
    caption = f"{each}: starting noise on the arc from one seed's to another's, sampled as the samples are."
    return Picture("Interpolation", caption, path, True)


def logs(recipe: Recipe, work: Workspace) -> dict[str, Path]:
    """The training logs there are, by what was trained, in order."""
    tokenizer = work.artefact("tokenizer")
    found = {f"tokenizer {phase}": tokenizer / "phases" / phase / "metrics.jsonl" for phase in recipe.tokenizer.phases}
    found["joint"] = work.artefact("joint") / "metrics.jsonl"
    found["generator"] = work.artefact("generator") / "metrics.jsonl"
    found["decoder"] = work.artefact("decoder") / "posttraining" / "metrics.jsonl"
    return {title: path for title, path in found.items() if path.exists()}


def read_note(folder: Path) -> dict[str, Any] | None:
    note = folder / NOTE
    return json.loads(note.read_text()) if note.exists() else None


def describe(recipe: Recipe, train: Images, held_out: Images) -> str:
    classes = f", {train.num_classes} classes" if train.num_classes else ""
    kinds = [recipe.tokenizer.model["kind"], recipe.generator.network["kind"], recipe.generator.objective["kind"]]
    return (
        f"{len(train)} training and {len(held_out)} held-out images of {recipe.data.size} × {recipe.data.size} pixels"
        f"{classes} · {' · '.join(kind.replace('_', ' ') for kind in kinds)}"
    )
