"""Trains the generator on codes, stored or made at every step.

The network is saved with the objective that samples it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.captions.table import open_captions
from pipeline.checks.accumulation import dependent_on_accumulation
from pipeline.components import build
from pipeline.files.writing import write_json
from pipeline.frozen.feature_maps import stored_features
from pipeline.frozen.networks import FrozenNetworks
from pipeline.images.reading import Images
from pipeline.latents.code_source import CodeSource
from pipeline.latents.encoded_images import open_codes
from pipeline.losses.base import Alignment
from pipeline.networks.base import Network
from pipeline.recipes.building import build_network, count_condition_classes, seed_initial_weights
from pipeline.recipes.generator_training import GeneratorTraining
from pipeline.recipes.schema import Recipe
from pipeline.recipes.started import find_network, find_old_tokenizer
from pipeline.runs.workspace import Workspace, plain
from pipeline.saved_folders import load_tokenizer
from pipeline.training import starting_weights
from pipeline.training.codes_and_images import CodesAndImages
from pipeline.training.generation import Generation
from pipeline.training.loop import TrainingRun, train
from pipeline.training.loss_heads import carry_heads, detach_heads, save_heads
from pipeline.training.milestones import Milestones
from pipeline.training.phase_parts import build_generator_losses, generator_taps
from pipeline.training.preview_sources import sources_of_generator
from pipeline.training.transplanting import Transplanting, record_start
from pipeline.training.tuning import save_tuned, tune

READS = ("latents", "joint")
READS_WHERE_MADE = ("text",)
WRITES = "generator"
IMAGES = ()  # those that the codes it reads are of, and no others
PRECISION = "generator"


def uses(recipe: Recipe) -> Any:
    training = recipe.generator, dependent_on_accumulation(recipe, "generator")
    inputs = (
        *training,
        starting_weights.fingerprints(folders_of(recipe.generator)),
        recipe.seed,
        recipe.precision.generator,
    )
    return (*inputs, recipe.data.preparation, recipe.weights.files) if recipe.generator.losses else inputs


def folders_of(part: GeneratorTraining) -> list[Any]:
    """All of a generator's settings that may name folders of weights; of a run only the network is looked at."""
    network = None if part.start is None else find_network(part.start)
    tokenizer = find_old_tokenizer(part.start) if part.transplanted else None
    return [{name: value for name, value in plain(part).items() if name != "start"}, str(network), str(tokenizer)]


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    captions, part = open_captions(recipe, work.artefact, "train", WRITES), recipe.generator
    codes = open_codes(work.artefact("latents"), recipe, work.accelerator, captions)
    classes = count_condition_classes(recipe, codes.num_classes)
    objective = build("objectives", part.objective)
    seed_initial_weights(recipe.seed)
    network = build_network(recipe, codes.spec, classes, objective)
    if part.start is not None:
        joint = str(work.artefact("joint") / "generator")
        start = replace(part.start, folder=joint) if part.starts_joint else part.start
        tables = Transplanting(recipe, codes, captions, work.accelerator).tables if part.transplanted else None
        starting_weights.start_network(network, start, tables)
    if captions is not None:
        network.set_empty_text(captions.table.empty)
    if network.taken:
        network.take_bottleneck(load_tokenizer(str(work.artefact("latents") / "tokenizer"), "latents").neck)
    new = tune(network, part)
    losses, data = {}, codes
    if part.losses and part.loop.steps:
        losses, data = build_hidden_losses(recipe, work, codes, network, out)
        if part.starts_joint:
            carry_heads(losses.values(), [work.artefact("joint") / "generator"])
    task = Generation(network, objective, part.weights, losses, new, codes.encoder)
    if part.transplanted:
        record_start(recipe, work, codes, task, out)
    milestones = Milestones(part.milestones, out, work.accelerator)
    workers = recipe.data.workers if data.reads_images else min(1, recipe.data.workers)  # one reads codes fast enough
    where = out, recipe.seed, work.accelerator, workers
    sources = sources_of_generator(recipe, work, codes, objective)
    how = recipe.precision.generator, work.sharding, sources, f"{recipe.name}-generator"
    settings = TrainingRun(part.loop, *where, milestones, *how)
    averages = train(task, data, settings)
    if work.accelerator.is_main_process:
        network, heads = detach_heads(averages["network"])
        save_heads(heads, out)
        class_names = codes.class_names if classes else []
        save_tuned(network, part, class_names, out)
        objective.save_pretrained(out / "objective")
        write_json(out / "class_names.json", class_names, indent=None)


def build_hidden_losses(
    recipe: Recipe, work: Workspace, codes: CodeSource, network: Network, out: Path
) -> tuple[dict[str, Alignment], CodeSource]:
    """The losses on hidden states, and what their training reads.

    The teachers' features come with the codes where they are stored, else from the images of the same views.
    """
    if recipe.latents.features:
        taps = {term: stored_features(described) for term, described in codes.manifest["features"].items()}
        return build_generator_losses(recipe, taps, network, recipe.seed), codes
    images = Images(recipe.data, "train")
    taps = generator_taps(FrozenNetworks(recipe, images, out, work.accelerator))
    losses = build_generator_losses(recipe, taps, network, recipe.seed)
    losses = {term: loss.to(work.accelerator.device) for term, loss in losses.items()}
    return losses, codes if codes.reads_images else CodesAndImages(codes, images)
