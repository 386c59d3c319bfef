"""Trains tokenizer and generator together, where the recipe has a `joint` section.

Without one the tokenizer passes through. Later stages read it here, with the critic that goes with it.
"""

import shutil
from pathlib import Path
from typing import Any

from pipeline.captions.table import open_captions
from pipeline.checks.accumulation import dependent_on_accumulation
from pipeline.components import build, find
from pipeline.critics.base import Critic
from pipeline.frozen.networks import FrozenNetworks
from pipeline.images.reading import Images
from pipeline.latents.encoding import EncodingPlan
from pipeline.latents.scale import measure, of_channels
from pipeline.nn.code_usage import make_code_usage
from pipeline.nn.running_norm import RunningNorm
from pipeline.recipes.building import build_network, count_condition_classes, seed_initial_weights
from pipeline.recipes.schema import Recipe
from pipeline.runs.workspace import NOTE, Workspace, plain
from pipeline.saved_folders import load_component
from pipeline.tokenizers.base import Tokenizer
from pipeline.training import starting_weights
from pipeline.training.generation import Generation
from pipeline.training.joint_tasks import build_joint_task
from pipeline.training.loop import TrainingRun, train
from pipeline.training.loss_heads import carry_heads, detach_heads, save_heads
from pipeline.training.phase_parts import (
    build_critic,
    build_generator_losses,
    build_losses,
    carry_over,
    critic_folder,
    generator_taps,
)
from pipeline.training.preview_sources import sources_of_joint_training

READS = ("tokenizer",)
READS_WHERE_MADE = ("text",)
WRITES = "joint"
IMAGES = ("train",)
PRECISION = "joint"
NEEDS = "generator"


def uses(recipe: Recipe) -> Any:
    if recipe.joint is None:
        return (None,)
    part = recipe.generator
    generator = part.network, part.objective, part.losses, part.weights, part.condition
    folders = starting_weights.fingerprints([plain(recipe.joint), plain(part.losses)])
    training = recipe.joint, dependent_on_accumulation(recipe, "joint"), generator
    prepared = recipe.data.preparation
    return *training, folders, recipe.latents, prepared, recipe.seed, recipe.precision.joint, recipe.weights.files


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    """With `joint: null` tokenizer and critic pass through as they are, so that no later stage has a branch."""
    source = work.artefact("tokenizer")
    if work.accelerator.is_main_process:
        if recipe.joint is None:
            for file in source.iterdir():
                if file.is_file() and file.name != NOTE:
                    shutil.copy2(file, out)
        if (critic := critic_folder(recipe, source)) is not None:
            shutil.copytree(critic, out / "critic", dirs_exist_ok=True)
    if recipe.joint is not None:
        train_together(recipe, work, source, out)


def train_together(recipe: Recipe, work: Workspace, source: Path, out: Path) -> None:
    """Train all players, and write what later stages read: `out` is the tokenizer, out/generator the network."""
    part, accelerator = recipe.joint, work.accelerator
    images = Images(recipe.data, "train", open_captions(recipe, work.artefact, "train", WRITES))
    cls = find("tokenizers", recipe.tokenizer.model["kind"])
    tokenizer: Tokenizer = load_component(cls, source)
    networks = FrozenNetworks(recipe, images, out, accelerator)
    losses = build_losses(networks, part.phase, recipe.seed)
    carry_heads(losses.values(), [source / "phases" / name for name in recipe.tokenizer.phases])
    critic = build_critic(networks, part.phase, recipe.seed)
    critic = start_critic(recipe, critic, source)
    generation = build_generation(networks, tokenizer)

    def make_norm() -> RunningNorm:
        plan = EncodingPlan(recipe.latents, recipe.seed, recipe.precision.joint)
        scale = of_channels(*measure(load_component(cls, source), images, plan, accelerator))
        return RunningNorm(*scale, part.epsilon, part.momentum)

    epoch = min(len(images), part.phase.loop.steps * part.phase.loop.batch)
    usage = make_code_usage(tokenizer.spec, epoch, part.phase.least_usage)
    task = build_joint_task(tokenizer, part, losses, critic, generation, make_norm, usage)
    where = out, recipe.seed, accelerator, recipe.data.workers
    sources = sources_of_joint_training(recipe, work, images, generation.objective, task.trained)
    how = recipe.precision.joint, work.sharding, sources, f"{recipe.name}-joint"
    settings = TrainingRun(part.phase.loop, *where, None, *how)
    averages = train(task, images, settings)
    if not accelerator.is_main_process:
        return
    of_tokenizer, of_network = task.trained(averages)
    kept, heads = detach_heads(of_tokenizer)
    kept.save_pretrained(out)
    save_heads(heads, out)
    network, heads = detach_heads(of_network)
    network.save_pretrained(out / "generator" / "network")
    save_heads(heads, out / "generator")
    if critic is not None:  # as trained, like the tokenizer's own
        critic.save_pretrained(out / "critic")


def start_critic(recipe: Recipe, critic: Critic | None, source: Path) -> Critic | None:
    """`critic` as training begins with it: as `joint.critic` is, else as the tokenizer's of the same make."""
    if critic is None or recipe.joint.critic is not None:
        return critic and starting_weights.load_start(critic, recipe.joint.critic, "joint.critic")
    return carry_over(critic, critic_folder(recipe, source))[0]


def build_generation(networks: FrozenNetworks, tokenizer: Tokenizer) -> Generation:
    """The generator's part in the training, its weights drawn by the recipe's seed."""
    recipe, part = networks.recipe, networks.recipe.generator
    classes = count_condition_classes(recipe, networks.images.num_classes)
    objective = build("objectives", part.objective)
    taps = generator_taps(networks)
    seed_initial_weights(recipe.seed)
    network = build_network(recipe, tokenizer.spec, classes, objective)
    if networks.images.captions is not None:
        network.set_empty_text(networks.images.captions.table.empty)
    losses = build_generator_losses(recipe, taps, network, recipe.seed)
    losses = {name: loss.to(networks.accelerator.device) for name, loss in losses.items()}
    return Generation(network, objective, part.weights, losses)
