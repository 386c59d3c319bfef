"""Sampling a published pipeline from the command line: what is asked of it, and into which folder."""

import json
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from accelerate import Accelerator

from pipeline.call_arguments import find_labels, resolve_guidance
from pipeline.components import structure
from pipeline.files.paths import given_path
from pipeline.files.writing import read_json, write_json
from pipeline.latent_pipeline import LatentPipeline
from pipeline.ranges import Count, Evaluations, ImageCount, Number, RangedFields, Seed, Whole
from pipeline.recipes.arithmetic import Precision
from pipeline.runs.lock import LOCK, hold
from pipeline.runs.processes import on_main
from pipeline.sampling.many_images import PROTOCOL, Plan, choose_labels, describe, sample_images
from pipeline.sampling.prompt_files import Layout, PromptSet, read_prompt_set
from pipeline.sampling.text_encoder import add_text_encoder
from pipeline.sampling.weak_network import load_weak
from pipeline.saved_folders import fetch, fingerprint_files
from pipeline.validation import Length

WORDS = ("prompt", "prompts", "negative_prompt", "each", "text_encoder")
IMAGES = ("[0-9]*.png", "samples/[0-9]*.png", "[0-9]*/samples/[0-9]*.png")  # of any layout
Seeds = Annotated[list[Seed], Length(1)]
Labels = Annotated[list[Whole | str], Length(1)]


@dataclass
class FolderSettings(RangedFields):
    """What `run.py sample FOLDER` takes; what is None is as the pipeline says."""

    labels: Whole | str | Labels = "balanced"  # or "random", or a label or name, or a list taken round
    prompt: str | None = None  # a text
    prompts: str | None = None  # or a file of one a line; geneval:FILE and dpg:FOLDER lie as their evaluators read them
    negative_prompt: str | None = None  # what guidance leads away from
    each: Count | None = None  # images of every prompt; null: 1, and 4 of geneval's and dpg's
    text_encoder: str | None = None  # its folder, where the pipeline has none; null: as the pipeline says
    images: ImageCount | None = None  # as many as labels, prompts or seeds are listed, else 16
    steps: Evaluations | None = None  # network evaluations
    guidance: Number | dict[str, Any] | None = None  # its scale, or what differs: guidance.interval=[0,0.8], ...
    sampler: dict[str, Any] = field(default_factory=dict)  # the objective's own settings
    seed: Seed = 0  # image i has seed + i
    seeds: Seeds | None = None  # or one per image
    precision: Precision = "fp32"
    weak: str | None = None  # folder of a network to guide away from, in place of the pipeline's own
    variant: str | None = None  # of the weights
    batch: Count = 16
    out: str | None = None


def sample_folder(source: str, settings: dict[str, Any], accelerator: Accelerator) -> Path:
    """Sample the pipeline in a folder or hub id as `FolderSettings` say; returns the folder of images.

    Images that are there already are kept. Raises ValueError with one line for settings that do not fit, and for an
    output folder that holds something else.
    """
    asked = structure(FolderSettings, settings)
    with accelerator.main_process_first():
        folder = fetch(source, {})
    pipe = LatentPipeline.from_pretrained(folder, variant=asked.variant)
    if asked.weak is not None:
        pipe.weak = load_weak(given_path(asked.weak))
        pipe.defaults = replace(pipe.defaults, weak=asked.weak)
    given = asked.guidance if isinstance(asked.guidance, dict) else {"scale": asked.guidance}
    add_text_encoder(pipe, asked.text_encoder)
    guidance = resolve_guidance(pipe.defaults.guidance, given)
    sampler = pipe.defaults.sampler | asked.sampler
    pipe.objective.read_settings(sampler)
    steps = pipe.defaults.steps if asked.steps is None else asked.steps
    pipe.defaults = replace(pipe.defaults, steps=steps, guidance=guidance, sampler=sampler)
    plan = plan_folder(asked, pipe)
    plan.protocol |= {"source": str(source), "variant": asked.variant, "files": fingerprint_files(folder)}
    default = Path("samples") / "-".join(Path(source).resolve().parts[-2:])
    out = given_path(default if asked.out is None else asked.out)
    _claim(out, plan.protocol | describe(pipe, plan), accelerator)
    with ExitStack() as held:
        on_main(accelerator, lambda: held.enter_context(hold(out / LOCK, str(out))))
        sample_images(pipe, plan, out, accelerator)
    return out


def plan_folder(asked: FolderSettings, pipe: LatentPipeline) -> Plan:
    """The labels, prompts and seeds that the command line asks for."""
    listed, prompts = asked.labels not in ("balanced", "random"), find_prompts(asked, pipe)
    names = asked.labels if isinstance(asked.labels, list) else [asked.labels]
    each = 1 if prompts is None else asked.each or prompts.each
    images = asked.images
    if images is None:
        stated = ([len(names)] if listed else []) + ([] if prompts is None else [len(prompts.texts) * each])
        images = len(asked.seeds) if asked.seeds is not None else max(stated, default=16)
    seeds = asked.seeds if asked.seeds is not None else [asked.seed + i for i in range(images)]
    if len(seeds) != images:
        raise ValueError(f"there are {len(seeds)} seeds for {images} images; give one per image, or seed=FIRST")
    if listed:
        named = find_labels(names, None, pipe.id2label, pipe.num_classes)
        labels = [named[i % len(named)] for i in range(images)]
    else:
        labels = choose_labels(asked.labels, seeds, pipe.num_classes)
    said = f"{asked.seed} + i" if asked.seeds is None else asked.seeds
    rule = {"labels": labels if listed else asked.labels, "seeds": said}
    if prompts is None:
        return Plan(labels, seeds, asked.batch, asked.precision, rule)
    rule |= {"prompts": prompts.described() | {"each": each}, "negative_prompt": asked.negative_prompt}
    if type(prompts.layout) is not Layout and images > len(prompts.texts) * each:
        raise ValueError(
            f"{images} images of {len(prompts.texts)} prompts, {each} each, are too many; leave images out"
        )
    texts = [prompts.texts[i // each % len(prompts.texts)] for i in range(images)]
    words = texts, asked.negative_prompt, prompts.layout, each
    return Plan(labels, seeds, asked.batch, asked.precision, rule, *words)


def find_prompts(asked: FolderSettings, pipe: LatentPipeline) -> PromptSet | None:
    """The prompts asked for; None where the generator reads none. ValueError where they are not given, or not read."""
    stated = [name for name in WORDS if getattr(asked, name) is not None]
    if pipe.text_spec is None:
        for name in stated:
            raise ValueError(f"{name}: this generator reads no text; leave it out")
        return None
    if (asked.prompt is None) == (asked.prompts is None):
        raise ValueError('this generator is asked in words: state prompt="...", or prompts=FILE of one a line')
    return PromptSet([asked.prompt], "prompt") if asked.prompts is None else read_prompt_set(asked.prompts, asked.each)


def is_readable(note: Path) -> bool:
    try:
        return isinstance(read_json(note), dict)
    except ValueError:
        return False


def _claim(out: Path, asked: dict[str, Any], accelerator: Accelerator) -> None:
    """Go on in a folder of the same request or begin an empty one; ValueError when it holds something else."""
    note, asked = out / PROTOCOL, json.loads(json.dumps(asked))
    if note.exists() and not is_readable(note):
        if accelerator.is_main_process:
            print(f"{note} is damaged, and with it what the images are of: all are made again")
            for image in (image for pattern in IMAGES for image in out.glob(pattern)):
                image.unlink()
    elif note.exists():
        there = read_json(note)
        if differing := [name for name in asked if there.get(name) != asked[name]]:
            name = differing[0]
            raise ValueError(f"{out} holds images with {name}={there.get(name)}; delete it or state another out=FOLDER")
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is there and holds no {PROTOCOL}; state another out=FOLDER")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_json(note, asked)
    accelerator.wait_for_everyone()
