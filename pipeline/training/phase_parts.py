"""What a phase of a recipe trains against: its losses and its critic, built."""

import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from pipeline.components import Node, build, find
from pipeline.critics.base import Critic
from pipeline.draws import mix
from pipeline.frozen.alignment_teacher import alignment_teacher, takes_tap
from pipeline.frozen.class_teacher import class_teacher, takes_class_teacher
from pipeline.frozen.critic_teacher import critic_teacher, takes_features
from pipeline.frozen.perceptual_backbone import perceptual_backbone
from pipeline.images.reading import Images
from pipeline.losses.base import Alignment, Loss
from pipeline.losses.class_contrast import projected_width
from pipeline.networks.base import Network
from pipeline.recipes.building import find_tokenizer, hidden_layout, on_meta, output_layout, seeded
from pipeline.recipes.schema import Phase, Recipe
from pipeline.saved_folders import load_component
from pipeline.teachers.base import Tap

log = logging.getLogger(__name__)


def build_losses(
    recipe: Recipe, accelerator: Accelerator, phase: Phase, images: Images, folder: Path, seed: int = 0
) -> dict[str, Loss]:
    """The phase's losses, the heads that they train by `seed`.

    The frozen networks that they compare features of are made when one asks for them.
    """
    losses, derived = {}, {}
    for name, node in phase.losses.items():
        if "backbone" in inspect.signature(find("losses", node["kind"]).__init__).parameters and not derived:
            derived = {"backbone": perceptual_backbone(recipe, images, folder, accelerator)}
        own = {}
        if takes_class_teacher(node):
            width = projected_width(*find_tokenizer(recipe))
            own = {"class_teacher": class_teacher(recipe, node, width, images, folder, accelerator)}
        if takes_tap(node):
            cls, arguments = find_tokenizer(recipe)
            spec = cls.geometry(arguments)
            tap = alignment_teacher(recipe, node, images, folder, accelerator)
            grid, width = list(spec.grid), spec.dim
            if node.get("at") is not None:
                grid, width = output_layout(on_meta(recipe), node["at"])
            own = {"tap": tap, "dim": width, "grid": grid}
        seeded(mix(seed, "loss", name))
        losses[name] = build("losses", node, **derived, **own).to(accelerator.device)
    return losses


def build_generator_losses(
    recipe: Recipe, taps: Mapping[str, Tap], network: Network, seed: int
) -> dict[str, Alignment]:
    """The losses on the hidden states of `network`, by term, each with its teacher's map in `taps`; heads by `seed`."""
    losses = {}
    for term, node in generator_nodes(recipe).items():
        grid, width = hidden_layout(network, node["block"])
        seeded(mix(seed, "loss", term))
        losses[term] = build("losses", node, tap=taps[term], dim=width, grid=grid)
    return losses


def generator_taps(recipe: Recipe, images: Images, folder: Path, accelerator: Accelerator) -> dict[str, Tap]:
    """The teachers' maps of the generator's losses, by term."""
    nodes = generator_nodes(recipe).items()
    return {term: alignment_teacher(recipe, node, images, folder, accelerator) for term, node in nodes}


def generator_nodes(recipe: Recipe) -> dict[str, Node]:
    """The generator's losses as the recipe states them, by their one term."""
    return {find("losses", node["kind"]).terms[0]: node for node in recipe.generator.losses.values()}


def build_critic(
    recipe: Recipe, accelerator: Accelerator, phase: Phase, images: Images, folder: Path, seed: int
) -> Critic | None:
    """The phase's critic, its weights drawn by `seed`, with the frozen network by which it judges where it has one."""
    if phase.adversary is None:
        return None
    node = phase.adversary.critic
    if not takes_features(node):
        seeded(seed)
        return build("critics", node)
    teacher = critic_teacher(recipe, node, images, folder, accelerator)
    seeded(seed)
    return build("critics", node, widths=list(teacher.widths), source=teacher.name).see_by(teacher)


def critic_folder(recipe: Recipe, tokenizer: Path) -> Path | None:
    """Where the trained tokenizer's last critic lies; None when no phase had one, or the tokenizer was imported."""
    contested = [name for name, phase in recipe.tokenizer.phases.items() if phase.adversary is not None]
    folder = tokenizer / "phases" / contested[-1] / "critic" if contested else None
    return folder if folder is not None and folder.is_dir() else None


def carry_over(critic: Critic, folder: Path | None) -> tuple[Critic, bool]:
    """`critic` with the weights in `folder` where these are of the same make, else as it is, which is said; whether."""
    if folder is None or not folder.is_dir():
        log.warning("the tokenizer was trained without a critic, or came without it: a fresh one is trained")
        return critic, False
    there, here = json.loads((folder / "config.json").read_text()), json.loads(critic.to_json_string())
    if there | {"_diffusers_version": None} != here | {"_diffusers_version": None}:
        log.warning("the tokenizer's critic in %s is of another make than this one's: a fresh one is trained", folder)
        return critic, False
    critic.load_state_dict(load_component(type(critic), folder).state_dict())
    return critic, True
