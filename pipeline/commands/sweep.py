"""The command `sweep`: the same seeds sampled with several settings, guidance scales and others, and all measured."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.checks.sampling import check_sampling
from pipeline.components import structure
from pipeline.files.writing import copy_folder, read_json, write_json
from pipeline.images.facts import SPLITS, UsedImages
from pipeline.images.files import image_file
from pipeline.images.reading import Images
from pipeline.measuring.reference import fingerprint_reference
from pipeline.measuring.samples import RealImages, SampleMeasuring, load_samples
from pipeline.program import command_line
from pipeline.ranges import Count, RangedFields
from pipeline.recipes.field_metadata import ONLY_SPEED
from pipeline.recipes.files import parse_settings
from pipeline.recipes.sampling import EarlierDecoder, Sampling
from pipeline.recipes.schema import Recipe, load
from pipeline.reporting.run_page import refresh_report
from pipeline.reporting.sweep_page import SHOWN, SWEEP, write_sweep
from pipeline.runs.finished import run_folder
from pipeline.runs.machine import accelerate
from pipeline.runs.milestones import chosen_decoder
from pipeline.runs.workspace import OWNER, Workspace, fingerprint, read_note
from pipeline.samplers.guidance import Guidance
from pipeline.sampling.held_out_prompts import find_text
from pipeline.sampling.many_images import assemble, plan_recipe, read_prompts, sample_images

MADE_OF = ("generator", "decoder")
SCALES = [1.0, 1.25, 1.5, 2.0, 3.0]  # of the guidance, where none are stated
NUMBERS = "numbers.json"  # of a point, written last: what has it is finished


@dataclass
class SweepSettings(RangedFields):
    """What `run.py sweep` takes: values to try in every combination; all else is as in the recipe."""

    guidance: dict[str, list[Any]] = field(default_factory=dict)  # values of its settings; a list alone: of its scale
    steps: tuple[Count, ...] = ()
    sampler: dict[str, list[Any]] = field(default_factory=dict)  # values of the objective's own settings, by name
    decoders: tuple[Count, ...] = ()  # steps of posttrain.milestones, whose decoders are tried
    images: Count | None = None  # of every point
    batch: Count | None = field(default=None, metadata=ONLY_SPEED)


@dataclass(frozen=True)
class SweepPoint:
    """One combination of values, by setting; `recipe` samples with it, `key` says what its numbers depend on."""

    values: dict[str, Any]
    recipe: Recipe
    key: str


def sweep(words: list[str]) -> None:
    """`run.py sweep RUN key=value ...`; prints where the sweep is. Every process takes part."""
    target, *overrides = words
    if (folder := run_folder(target)) is None:
        raise ValueError(f"{target} is no run; name its folder, which holds {OWNER}, its name in runs/, or its recipe")
    settings, recipe = structure(SweepSettings, parse_settings(overrides)), load(str(folder / OWNER))
    if recipe.generator is None:
        raise ValueError(f"{folder} has no generator, so there are no samples to sweep; `card` measures its tokenizer")
    work = Workspace(folder, accelerate())
    made_of = {name: read_note(work.artefact(name)).get("hash") for name in MADE_OF}
    images = images_of_run(recipe, work)
    points = combine(recipe, settings, made_of | {"images": images, "reference": fingerprint_reference(recipe)})
    because = fingerprint([point.key for point in points])
    say = print if work.accelerator.is_main_process else (lambda *_: None)
    if work.current("sweep", because):
        return say(f"sweep: {folder / 'sweep'} is up to date")
    for name in MADE_OF:
        work.verify(name)
    with work.alone("sweep"), work.publish("sweep", because, seed=recipe.seed) as draft:
        make_sweep(recipe, points, work, made_of, draft)
    if work.accelerator.is_main_process:
        refresh_report(folder)
    say(f"sweep: {folder / 'sweep' / 'index.html'}")


def images_of_run(recipe: Recipe, work: Workspace) -> dict[str, dict[str, Any]]:
    """The images of both splits; ValueError where they are not those that the run was made of."""
    notes = work.history(MADE_OF).values()
    images = UsedImages(recipe.data, notes)
    if change := images.change_since(notes):
        raise ValueError(f"{change} since {work.root} was made; type: {command_line('all', 'RECIPE')}")
    return images.of(SPLITS)


def combine(recipe: Recipe, settings: SweepSettings, made_of: dict[str, Any]) -> list[SweepPoint]:
    """Every combination of values, in the order given; ValueError where there is none."""
    tried = {("guidance", name): values for name, values in ({"scale": SCALES} | settings.guidance).items() if values}
    tried |= {("steps",): settings.steps} if settings.steps else {}
    tried |= {("decoder",): settings.decoders} if settings.decoders else {}
    tried |= {("sampler", name): values for name, values in settings.sampler.items()}
    if not tried or not all(tried.values()):
        raise ValueError("a sweep needs values to try; set guidance=[1,1.5,2], steps=[10,25] or sampler.NAME=[...]")
    changes = {"images": settings.images, "batch": settings.batch}
    base = replace(recipe.sample, **{name: value for name, value in changes.items() if value is not None})
    points, prepared = [], recipe.data.preparation
    for combination in product(*tried.values()):
        values = {".".join(path).removesuffix(".scale"): value for path, value in zip(tried, combination)}
        variant = replace(recipe, sample=chosen_sampling(base, dict(zip(tried, combination))))
        words = recipe.precision.sample, recipe.precision.evaluate
        parts = (variant.sample, recipe.seed, words, made_of, recipe.evaluate, prepared, recipe.weights.files)
        points.append(SweepPoint(values, variant, fingerprint(*parts)))
    return points


def chosen_sampling(base: Sampling, chosen: Mapping[tuple[str, ...], Any]) -> Sampling:
    """A recipe's sampling with the values of one combination in it."""
    sampling = base
    for (section, *inner), value in chosen.items():
        if section == "guidance":
            guidance = structure(Guidance, asdict(sampling.guidance) | {inner[0]: value}, "guidance")
            sampling = replace(sampling, guidance=guidance)
        elif section == "sampler":
            sampling = replace(sampling, sampler=sampling.sampler | {inner[0]: value})
        elif section == "decoder":
            sampling = replace(sampling, decoder=EarlierDecoder(value))
        else:
            sampling = replace(sampling, steps=value)
    return sampling


def make_sweep(recipe: Recipe, points: list[SweepPoint], work: Workspace, made_of: dict[str, str], out: Path) -> None:
    """Sample and measure the points that no sweep has finished yet, and write all of them to `out`."""
    decoder, generator = work.artefact("decoder"), work.artefact("generator")
    text = find_text(recipe, work)
    pipe = assemble(recipe, decoder, generator)
    for point in points:
        check_sampling(point.recipe, pipe.tokenizer.spec, pipe.objective)
        if work.accelerator.is_main_process:
            adopt(work.root, point, out)
    work.accelerator.wait_for_everyone()
    todo = [point for point in points if not (folder_of(out, point) / NUMBERS).exists()]
    work.accelerator.wait_for_everyone()
    if todo:
        train, held_out = Images(recipe.data, "train"), Images(recipe.data, "held_out")
        measuring = SampleMeasuring.of_run(recipe, work, train, held_out, out / "judge")
        real = measuring.read_real(train, held_out, todo[0].recipe.sample.images)
    for number, point in enumerate(todo, 1):
        if work.accelerator.is_main_process:
            print(f"{number} of {len(todo)}: {json.dumps(point.values)}")
        pipe = assemble(point.recipe, chosen_decoder(point.recipe, decoder), generator, text)
        samples = out / "samples" / point.key
        sample_images(pipe, plan_recipe(point.recipe, pipe, text), samples, work.accelerator)
        measure(point, measuring, real, samples, folder_of(out, point))
    if work.accelerator.is_main_process:
        shutil.rmtree(out / "samples", ignore_errors=True)
        measured = [{"values": point.values} | read_json(folder_of(out, point) / NUMBERS) for point in points]
        content = {"name": recipe.name, "made_of": made_of, "points": measured}
        write_json(out / SWEEP, content, allow_nan=False)
        write_sweep(out, content, [folder_of(out, point) for point in points])


def folder_of(out: Path, point: SweepPoint) -> Path:
    return out / "points" / point.key


def adopt(run: Path, point: SweepPoint, out: Path) -> None:
    """Copy a point that an earlier sweep, finished or not, has measured."""
    mine = folder_of(out, point)
    for earlier in (run / "sweep", *sorted(run.glob(".sweep-*"))):
        theirs = folder_of(earlier, point)
        if earlier != out and (theirs / NUMBERS).exists() and not (mine / NUMBERS).exists():
            copy_folder(theirs, mine)


def measure(point: SweepPoint, measuring: SampleMeasuring, real: RealImages, samples: Path, folder: Path) -> None:
    """Save a point's numbers and its first images; the others are deleted, since they can be sampled again exactly."""
    pixels, labels, record = load_samples(samples)
    statistics = measuring.read_samples(pixels, labels, read_prompts(samples))
    if measuring.accelerator.is_main_process:
        measured = [numbers for _, numbers in measuring.measure(statistics, real, record)]
        content = {"sampling": asdict(point.recipe.sample), "network_evaluations": record["network_evaluations"]}
        content |= {"numbers": {key: number.as_dict() for numbers in measured for key, number in numbers.items()}}
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(min(SHOWN, len(pixels))):
            shutil.copy(image_file(samples, i), image_file(folder, i))
        write_json(folder / NUMBERS, content, allow_nan=False)
        shutil.rmtree(samples)
    measuring.accelerator.wait_for_everyone()
