"""Trains the decoder on what the generator makes, where the recipe has a `posttrain` section.

Without one the tokenizer passes through.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.captions.table import open_captions
from pipeline.checks.accumulation import dependent_on_accumulation
from pipeline.components import find
from pipeline.files.writing import write_json
from pipeline.frozen.networks import FrozenNetworks
from pipeline.images.reading import Images
from pipeline.latents.encoded_images import open_codes
from pipeline.recipes.schema import Recipe
from pipeline.runs.workspace import Workspace, plain
from pipeline.sampling.many_images import assemble, sampling_record
from pipeline.saved_folders import fingerprint_files, load_component
from pipeline.tokenizers.base import Tokenizer
from pipeline.training import starting_weights
from pipeline.training.kept_decoder import KeptDecoder
from pipeline.training.loop import TrainingRun, train
from pipeline.training.pairs import Originals, Pairs, cost_of_pairs, make_pairs
from pipeline.training.phase_parts import build_critic, build_losses, carry_over
from pipeline.training.posttraining import DecoderTraining
from pipeline.training.preview_sources import sources_of_decoder

READS = ("joint", "latents", "generator")
READS_WHERE_MADE = ("text",)
WRITES = "decoder"
IMAGES = ()  # those that the codes it reads are of, and no others
PRECISION = "posttrain"


def uses(recipe: Recipe) -> Any:
    if recipe.posttrain is None:
        return (None,)
    folders = starting_weights.fingerprints([plain(recipe.posttrain), plain(recipe.sample.weak)])
    sampled = plain(sampling_record(recipe)), recipe.latents.precision
    training = recipe.posttrain, dependent_on_accumulation(recipe, "posttrain")
    return (
        *training,
        folders,
        sampled,
        recipe.data.preparation,
        recipe.seed,
        recipe.precision.posttrain,
        recipe.weights.files,
    )


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    """With `posttrain: null` the tokenizer passes through as it is, so that no later stage has a branch."""
    tokenizer = work.artefact("latents") / "tokenizer"
    if recipe.posttrain is not None:
        tokenizer = train_decoder(recipe, work, tokenizer, out)
    if work.accelerator.is_main_process:
        shutil.copytree(tokenizer, out, dirs_exist_ok=True)


def train_decoder(recipe: Recipe, work: Workspace, tokenizer: Path, out: Path) -> Path:
    """The folder of the post-trained tokenizer; pairs, log and cost stay in `out` beside what is made of it."""
    part, accelerator, folder = recipe.posttrain, work.accelerator, out / "posttraining"
    captions = open_captions(recipe, work.artefact, "train", WRITES)
    images = Images(recipe.data, "train", captions)
    originals = Originals(open_codes(work.artefact("latents"), recipe, accelerator, captions), images, recipe)
    generator, weak = work.artefact("generator"), starting_weights.fingerprints(plain(recipe.sample.weak))
    pipe, networks = assemble(recipe, tokenizer, generator), weak | {"generator": fingerprint_files(generator)}
    make_pairs(recipe, pipe, originals, out / "pairs", accelerator, networks, work.root / WRITES / "pairs")
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
    accelerator.wait_for_everyone()
    count = part.pairs - part.held_out
    pairs = Pairs(out / "pairs", originals, recipe, 0, count)
    networks = FrozenNetworks(recipe, images, folder, accelerator)
    losses = build_losses(networks, part.phase)
    held_out = Pairs(out / "pairs", originals, recipe, count, part.held_out)
    kept = KeptDecoder(part, losses, held_out, out, accelerator, recipe.precision.posttrain)
    critic, carried = build_critic(networks, part.phase, recipe.seed), None
    if critic is not None:
        carried = False
    if critic is not None and part.phase.adversary.carried:
        critic, carried = carry_over(critic, work.artefact("joint") / "critic")
    model: Tokenizer = load_component(find("tokenizers", recipe.tokenizer.model["kind"]), tokenizer)
    task = DecoderTraining(model, part.phase, losses, critic)
    if not kept.checks:
        kept.check(0, task.players["tokenizer"].to(accelerator.device).eval())
    if not kept.ended:
        where = folder, recipe.seed, accelerator, recipe.data.workers
        sources = sources_of_decoder(recipe, work, pairs, held_out)
        how = recipe.precision.posttrain, work.sharding, sources, f"{recipe.name}-decoder"
        train(task, pairs, TrainingRun(part.phase.loop, *where, kept, *how))
    if accelerator.is_main_process:
        write_json(out / "posttraining.json", describe(kept, out / "pairs", carried))
    return kept.folder


def describe(kept: KeptDecoder, pairs: Path, carried: bool | None) -> dict[str, Any]:
    """What post-training was, gave and cost, as JSON values."""
    part, cost = kept.settings, cost_of_pairs(pairs)
    return {
        "pairs": part.pairs,
        "held_out": part.held_out,
        "preserve": part.preserve,
        "route": part.route,
        "view": part.view,
        "rehearsal": part.rehearsal,
        "keep": part.keep,
        "milestones": list(part.milestones),
        "critic": {None: "none", True: "carried over", False: "fresh"}[carried],
        "error_before": kept.checks[0].error,
        "error_after": kept.kept.error,
        "steps": kept.checks[-1].step,
        "kept_step": kept.kept.step,
        "stopped_early": kept.checks[-1].step < part.phase.loop.steps,
        "cost": {
            "seconds_of_pairs": round(cost["seconds"], 2),  # added over processes
            "network_evaluations_of_pairs": round(cost["evaluations"]),
            "seconds_of_training": round(sum(check.seconds for check in kept.checks), 2),
        },
        "checks": [asdict(check) for check in kept.checks],
    }
