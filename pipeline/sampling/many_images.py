"""Many images from a pipeline into a folder: on any number of processes, resumable, in flat memory."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from accelerate import Accelerator
from torch import Generator, nn
from tqdm import tqdm

from pipeline.call_arguments import find_labels, resolve_guidance
from pipeline.components import find, structure
from pipeline.draws import mix
from pipeline.files.paths import given_path
from pipeline.files.writing import new_file, read_json, write_json
from pipeline.images.files import image_file, write_archive, write_grid
from pipeline.latent_pipeline import LatentPipeline
from pipeline.networks.base import Network
from pipeline.nn.finite import naming_images
from pipeline.ranges import Count, Evaluations, ImageCount, Number, RangedFields, Seed, Whole
from pipeline.recipes.arithmetic import Precision
from pipeline.recipes.building import count_parameters
from pipeline.recipes.schema import Recipe
from pipeline.runs.lock import LOCK, hold
from pipeline.runs.milestones import milestone
from pipeline.runs.precision import arithmetic
from pipeline.runs.processes import on_main
from pipeline.runs.workspace import surroundings
from pipeline.sampling.weak_network import check_same_codes, load_weak
from pipeline.saved_folders import fetch, fingerprint_files, load_component
from pipeline.validation import Length

PROTOCOL = "samples.json"
Seeds = Annotated[list[Seed], Length(1)]
Labels = Annotated[list[Whole | str], Length(1)]


@dataclass
class FolderSettings(RangedFields):
    """What `run.py sample FOLDER` takes; what is None is as the pipeline says."""

    labels: Whole | str | Labels = "balanced"  # or "random", or a label or name, or a list taken round
    images: ImageCount | None = None  # as many as labels or seeds are listed, else 16
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


@dataclass
class Plan:
    """Which images: one label (None when unconditional) and one seed each. How is said by `pipe.defaults`."""

    labels: list[int] | None
    seeds: list[int]
    batch: int
    precision: Precision
    protocol: dict[str, Any]  # how labels and seeds were chosen, for samples.json


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
    """The labels and seeds that the command line asks for."""
    listed = asked.labels not in ("balanced", "random")
    names = asked.labels if isinstance(asked.labels, list) else [asked.labels]
    images = asked.images
    if images is None:
        images = len(asked.seeds) if asked.seeds is not None else len(names) if listed else 16
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
    return Plan(labels, seeds, asked.batch, asked.precision, rule)


def plan_recipe(recipe: Recipe, pipe: LatentPipeline) -> Plan:
    """The labels and seeds of a recipe: image i has seed recipe.seed + i."""
    part = recipe.sample
    seeds = [recipe.seed + i for i in range(part.images)]
    rule = {"labels": part.labels, "seeds": f"{recipe.seed} + i", "recipe": recipe.name}
    return Plan(choose_labels(part.labels, seeds, pipe.num_classes), seeds, part.batch, recipe.precision.sample, rule)


def choose_labels(rule: str, seeds: list[int], num_classes: int) -> list[int] | None:
    """`balanced`: 0, 1, ... in turn; `random`: a function of the image's seed. None for an unconditional network."""
    if not num_classes:
        return None
    if rule == "balanced":
        return [i % num_classes for i in range(len(seeds))]
    return [mix(seed, "label") % num_classes for seed in seeds]


def sampling_record(recipe: Recipe) -> dict[str, Any]:
    """A recipe's `sample` section as the `sampling` of a LatentPipeline."""
    part = recipe.sample
    guidance = asdict(part.guidance) | {"interval": list(part.guidance.interval)}
    weak = None if part.weak is None else str(part.weak)
    return {"steps": part.steps, "guidance": guidance, "sampler": part.sampler, "weak": weak}


def assemble(recipe: Recipe, decoder: Path, generator: Path) -> LatentPipeline:
    """The pipeline of a finished run's decoder/ and generator/ folders, with the recipe's sampling as its defaults."""
    names = read_json(generator / "class_names.json")
    return LatentPipeline(
        load_component(find("tokenizers", recipe.tokenizer.model["kind"]), decoder),
        load_component(find("networks", recipe.generator.network["kind"]), generator / "network"),
        find("objectives", recipe.generator.objective["kind"]).from_pretrained(generator / "objective"),
        id2label=dict(enumerate(names)),
        sampling=sampling_record(recipe),
        weak=find_weak(recipe, generator),
        depth=recipe.data.depth,
    )


def find_weak(recipe: Recipe, generator: Path) -> Network | None:
    """The network that the recipe's guidance leads away from, where it states one."""
    weak = recipe.sample.weak
    if weak is None:
        return None
    if weak.step is not None:
        return load_weak(milestone(generator, weak.step))
    check_same_codes(Path(weak.folder), generator)
    return load_weak(Path(weak.folder))


def sample_images(pipe: LatentPipeline, plan: Plan, out: Path, accelerator: Accelerator) -> None:
    """000000.png ... in `out`, then grid.png, samples.npz and samples.json.

    Image i depends on its label, its seed and `pipe.defaults` alone: up to rounding, and to the bit on one machine for
    one size of batch, since images are made in the same batches however many processes there are and however often
    they were stopped. Images that are there already are kept, so that the same call goes on where it stopped. Each
    process writes its own images, the main one what they share.
    """
    out.mkdir(parents=True, exist_ok=True)
    whole = [range(i, min(i + plan.batch, len(plan.seeds))) for i in range(0, len(plan.seeds), plan.batch)]
    todo = [batch for batch in whole if not all(image_file(out, i).exists() for i in batch)]
    accelerator.wait_for_everyone()  # nobody writes before all have looked
    mine = todo[accelerator.process_index :: accelerator.num_processes]
    if accelerator.is_main_process:
        mine = mine or whole[:1]  # the evaluations are counted while images are made
    pipe.to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    with counted(pipe.network) as calls:
        _make(pipe, plan, mine, out, accelerator, sum(map(len, todo)))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        labels = [-1] * len(plan.seeds) if plan.labels is None else plan.labels
        write_archive(out / "samples.npz", [image_file(out, i) for i in range(len(plan.seeds))], labels)
        write_grid(out, pipe.num_classes, len(plan.seeds))
        record = describe(pipe, plan) | {"network_evaluations": calls.total() / len(mine)} | surroundings(accelerator)
        write_json(out / PROTOCOL, plan.protocol | record | {"precision": plan.precision})
    accelerator.wait_for_everyone()


def _make(pipe: LatentPipeline, plan: Plan, mine: list[range], out: Path, accelerator: Accelerator, total: int) -> None:
    """Make this process's batches of images, and write of each those that are not there."""
    with tqdm(total=total, desc="sampling", unit="image", disable=not accelerator.is_main_process) as bar:
        for batch in mine:
            labels = None if plan.labels is None else [plan.labels[i] for i in batch]
            generators = [Generator().manual_seed(plan.seeds[i]) for i in batch]
            with naming_images(numbers=batch), arithmetic(accelerator.device, plan.precision):
                images = pipe(labels, num_images=len(batch), generator=generators).images
            for i, image in zip(batch, images):
                if image_file(out, i).exists():
                    continue
                with new_file(image_file(out, i)) as draft:
                    image.save(draft)
            bar.update(min(len(batch) * accelerator.num_processes, total - bar.n))


def describe(pipe: LatentPipeline, plan: Plan) -> dict[str, Any]:
    """How images are made, as JSON values."""
    return {
        "images": len(plan.seeds),
        "steps": pipe.steps,
        "guidance": asdict(pipe.defaults.guidance) | {"interval": list(pipe.defaults.guidance.interval)},
        "sampler": pipe.defaults.sampler,
        "scheduler": None if pipe.scheduler is None else type(pipe.scheduler).__name__,
        "objective": type(pipe.objective).__name__,
        "network": type(pipe.network).__name__,
        "tokenizer": type(pipe.tokenizer).__name__,
        "weak": None if pipe.weak is None else {"from": pipe.defaults.weak, "parameters": count_parameters(pipe.weak)},
        "precision": plan.precision,
    }


@contextmanager
def counted(network: nn.Module) -> Iterator[Counter[str]]:
    """Counts the evaluations of the network (a guided pair is one)."""
    calls: Counter[str] = Counter()
    hook = network.register_forward_hook(lambda *_: calls.update(["evaluations"]))
    try:
        yield calls
    finally:
        hook.remove()


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
            for image in out.glob("[0-9]*.png"):
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
