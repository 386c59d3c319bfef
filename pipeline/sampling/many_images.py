"""Many images from a pipeline into a folder: on any number of processes, resumable, in flat memory."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Generator, nn
from tqdm import tqdm

from pipeline.components import find
from pipeline.draws import mix
from pipeline.files.writing import new_file, read_json, write_json, write_text
from pipeline.images.files import write_archive, write_grid
from pipeline.images.reading import Images
from pipeline.latent_pipeline import LatentPipeline
from pipeline.networks.base import Network
from pipeline.nn.finite import naming_images
from pipeline.recipes.arithmetic import Precision
from pipeline.recipes.building import count_parameters
from pipeline.recipes.schema import Recipe
from pipeline.runs.milestones import milestone
from pipeline.runs.precision import arithmetic
from pipeline.runs.workspace import surroundings
from pipeline.sampling.held_out_prompts import load_encoder_of_run, prompts_of_recipe
from pipeline.sampling.prompt_files import Layout
from pipeline.sampling.weak_network import check_same_codes, load_weak
from pipeline.saved_folders import load_component

PROTOCOL, PROMPTS = "samples.json", "prompts.jsonl"


@dataclass
class Plan:
    """Which images: one label (None when unconditional) and one seed each. How is said by `pipe.defaults`."""

    labels: list[int] | None
    seeds: list[int]
    batch: int
    precision: Precision
    protocol: dict[str, Any]  # how labels and seeds were chosen, for samples.json
    prompts: list[str] | None = None  # one per image; None where the generator reads no text
    negative_prompt: str | None = None
    layout: Layout = field(default_factory=Layout)
    each: int = 1  # images of a prompt, in a row

    def words(self, batch: range) -> dict[str, Any]:
        """The arguments of a call for these images that state their prompts."""
        if self.prompts is None:
            return {}
        return {"prompt": [self.prompts[i] for i in batch], "negative_prompt": self.negative_prompt}


def write_prompts(out: Path, plan: Plan, images: list[Path]) -> None:
    """prompts.jsonl: a line for each image, of its file, prompt, label and seed, in the order of samples.npz."""
    if plan.prompts is None:
        return
    labels = [None] * len(images) if plan.labels is None else plan.labels
    rows = zip(images, plan.prompts, labels, plan.seeds, strict=True)
    records = [
        {"image": image.relative_to(out).as_posix(), "prompt": prompt, "label": label, "seed": seed}
        for image, prompt, label, seed in rows
    ]
    write_text(out / PROMPTS, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))


def read_prompts(folder: Path) -> list[str] | None:
    """The prompts of the samples in a folder, in their order; None where they were made without."""
    path = folder / PROMPTS
    if not path.is_file():
        return None
    return [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]


def plan_recipe(recipe: Recipe, pipe: LatentPipeline, text: Path | None = None) -> Plan:
    """The labels, prompts and seeds of a recipe: image i has seed recipe.seed + i; `text` is the folder of captions.

    With captions of held-out images the labels, too, are these images'.
    """
    part = recipe.sample
    seeds = [recipe.seed + i for i in range(part.images)]
    rule = {"labels": part.labels, "seeds": f"{recipe.seed} + i", "recipe": recipe.name}
    labels = choose_labels(part.labels, seeds, pipe.num_classes)
    if text is None:
        return Plan(labels, seeds, part.batch, recipe.precision.sample, rule)
    prompts, rows = prompts_of_recipe(recipe, text)
    rule |= {"prompts": part.prompts, "negative_prompt": part.negative_prompt}
    if rows is not None and labels is not None:
        source = Images(recipe.data, "held_out").source
        labels, rule["labels"] = [source.label_of(row) for row in rows.tolist()], "of the images of the captions"
    return Plan(labels, seeds, part.batch, recipe.precision.sample, rule, prompts, part.negative_prompt)


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


def assemble(recipe: Recipe, decoder: Path, generator: Path, text: Path | None = None) -> LatentPipeline:
    """The pipeline of a finished run's decoder/ and generator/ folders, with the recipe's sampling as its defaults.

    With its folder text/ it has the encoder of captions; without, it is asked by their features alone.
    """
    names = read_json(generator / "class_names.json")
    return LatentPipeline(
        load_component(find("tokenizers", recipe.tokenizer.model["kind"]), decoder),
        load_component(find("networks", recipe.generator.network["kind"]), generator / "network"),
        find("objectives", recipe.generator.objective["kind"]).from_pretrained(generator / "objective"),
        id2label=dict(enumerate(names)),
        sampling=sampling_record(recipe),
        weak=find_weak(recipe, generator),
        depth=recipe.data.depth,
        text_encoder=None if text is None else load_encoder_of_run(recipe, text),
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
    todo = [batch for batch in whole if not all(plan.layout.image(out, i).exists() for i in batch)]
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
        images = [plan.layout.image(out, i) for i in range(len(plan.seeds))]
        write_archive(out / "samples.npz", images, labels)
        write_grid(out, pipe.num_classes, images, plan.prompts)
        write_prompts(out, plan, images)
        plan.layout.finish(out, plan.each, len(images))
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
                words = plan.words(batch)
                images = pipe(labels, num_images=len(batch), generator=generators, **words).images
            for i, image in zip(batch, images):
                path = plan.layout.image(out, i)
                if path.exists():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with new_file(path) as draft:
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
