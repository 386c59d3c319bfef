"""Trains the tokenizer on images, phase after phase.

Each phase continues from the average weights of the one before.
"""

from pathlib import Path
from typing import Any

from pipeline.captions.table import open_captions
from pipeline.checks.accumulation import dependent_on_accumulation
from pipeline.files.writing import new_folder, remove_folder
from pipeline.frozen.networks import FrozenNetworks
from pipeline.images.reading import Images
from pipeline.nn.code_usage import make_code_usage
from pipeline.recipes.schema import Recipe
from pipeline.runs.workspace import Workspace, plain
from pipeline.tokenizers.base import Tokenizer
from pipeline.training import starting_weights
from pipeline.training.loop import TrainingRun, train
from pipeline.training.loss_heads import carry_heads, detach_heads, save_heads
from pipeline.training.phase_parts import build_critic, build_losses, carry_over
from pipeline.training.preview_sources import sources_of_phase
from pipeline.training.reconstruction import Reconstruction
from pipeline.training.starting_tokenizer import build_starting_tokenizer

READS = ()
READS_WHERE_MADE = ("text",)
WRITES = "tokenizer"
IMAGES = ("train",)
PRECISION = "tokenizer"
FROZEN = "frozen"  # in its folder: networks that are trained for losses and critics, once for all phases


def uses(recipe: Recipe) -> Any:
    folders = starting_weights.fingerprints(plain(recipe.tokenizer))
    batches = dependent_on_accumulation(recipe, "tokenizer")
    prepared = recipe.data.preparation
    return recipe.tokenizer, batches, folders, prepared, recipe.seed, recipe.precision.tokenizer, recipe.weights.files


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    tokenizer = build_starting_tokenizer(recipe)
    if recipe.tokenizer.phases:
        images = Images(recipe.data, "train", open_captions(recipe, work.artefact, "train", WRITES))
        networks = FrozenNetworks(recipe, images, out / FROZEN, work.accelerator)
        if tokenizer.can.needs_stand_in:
            tokenizer.load_stand_in(networks.stand_in())
        for number, name in enumerate(recipe.tokenizer.phases):
            tokenizer = train_phase(networks, work, out / "phases" / name, tokenizer, number)
    if work.accelerator.is_main_process:
        tokenizer.save_pretrained(out)
        for copy in out.glob("phases/*/tokenizer"):
            remove_folder(copy)  # the last is `out` itself; were the stage to be stopped here, checkpoints remain


def train_phase(
    networks: FrozenNetworks, work: Workspace, folder: Path, tokenizer: Tokenizer, number: int
) -> Tokenizer:
    """The tokenizer after one phase: loaded if the phase is finished, else trained, or its training resumed."""
    phase = networks.recipe.tokenizer.phases[folder.name]
    recipe, images, accelerator, finished = networks.recipe, networks.images, networks.accelerator, folder / "tokenizer"
    if finished.exists():
        return type(tokenizer).from_pretrained(finished)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    seed = recipe.seed + number
    losses = build_losses(networks, phase, seed)
    earlier = list(recipe.tokenizer.phases)[:number]
    carry_heads(losses.values(), [folder.parent / name for name in earlier])
    critic = build_critic(networks, phase, seed)
    if critic is not None and phase.adversary.carried:
        with_critic = [name for name in earlier if recipe.tokenizer.phases[name].adversary is not None]
        critic, _ = carry_over(critic, folder.parent / with_critic[-1] / "critic")
    epoch = min(len(images), phase.loop.steps * phase.loop.batch)
    usage = make_code_usage(tokenizer.spec, epoch, phase.least_usage)
    task = Reconstruction(tokenizer, phase, losses, critic, usage)
    where = folder, seed, accelerator, recipe.data.workers
    sources = sources_of_phase(recipe, work, images, folder.name)
    how = recipe.precision.tokenizer, work.sharding, sources, f"{recipe.name}-tokenizer.{folder.name}"
    averages = train(task, images, TrainingRun(phase.loop, *where, None, *how))
    tokenizer, heads = detach_heads(averages["tokenizer"])
    if accelerator.is_main_process:
        save_heads(heads, folder)
        if critic is not None:  # as trained, and not its average: post-training continues from it
            critic.save_pretrained(folder / "critic")
        with new_folder(finished) as draft:
            tokenizer.save_pretrained(draft)
    accelerator.wait_for_everyone()
    return tokenizer.requires_grad_(True)
