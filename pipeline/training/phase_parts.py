"""What a phase of a recipe trains against: its losses and its critic, built."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.components import Node, build, check, find
from pipeline.critics.base import Critic
from pipeline.draws import mix
from pipeline.files.writing import read_json
from pipeline.frozen.networks import FrozenNetworks
from pipeline.losses.base import Alignment, Attachment, Loss
from pipeline.networks.base import Network
from pipeline.recipes.building import (
    DERIVED,
    build_tokenizer_on_meta,
    find_tokenizer,
    hidden_layout,
    output_layout,
    seed_initial_weights,
)
from pipeline.recipes.schema import Recipe
from pipeline.recipes.tokenizer_training import Phase
from pipeline.saved_folders import load_component
from pipeline.teachers.base import Tap

log = logging.getLogger(__name__)


def build_losses(networks: FrozenNetworks, phase: Phase, seed: int = 0) -> dict[str, Loss]:
    """The phase's losses with the frozen networks that they declare; the heads that they train are drawn by `seed`."""
    losses = {}
    for name, node in phase.losses.items():
        derived = token_layout(networks.recipe, attachment_of(node))
        if (extractor := networks.extractor("losses", node)) is not None:
            derived["extractor"] = extractor
        seed_initial_weights(mix(seed, "loss", name))
        losses[name] = build("losses", node, **derived).to(networks.accelerator.device)
    return losses


def attachment_of(node: Node) -> Attachment | None:
    """Where the loss of a node reads tokens; None where it reads images."""
    cls, arguments = check("losses", node, DERIVED["losses"])
    return cls.attachment_of(arguments)


def token_layout(recipe: Recipe, attachment: Attachment | None) -> dict[str, Any]:
    """Grid and width of the tokens that a tokenizer's loss reads, as arguments; none where it reads images."""
    if attachment is None:
        return {}
    if attachment.module is not None:
        grid, width = output_layout(build_tokenizer_on_meta(recipe), attachment.module)
        return {"grid": grid, "dim": width}
    cls, arguments = find_tokenizer(recipe)
    spec = cls.geometry(arguments)
    return {"grid": list(spec.grid), "dim": spec.dim}


def build_generator_losses(
    recipe: Recipe, taps: Mapping[str, Tap], network: Network, seed: int
) -> dict[str, Alignment]:
    """The losses on the hidden states of `network`, by term, each with its teacher's map in `taps`; heads by `seed`."""
    losses = {}
    for term, node in generator_nodes(recipe).items():
        grid, width = hidden_layout(network, attachment_of(node).block)
        seed_initial_weights(mix(seed, "loss", term))
        losses[term] = build("losses", node, extractor=taps[term], dim=width, grid=grid)
    return losses


def generator_taps(networks: FrozenNetworks) -> dict[str, Tap]:
    """The teachers' maps of the generator's losses, by term."""
    return {term: networks.extractor("losses", node) for term, node in generator_nodes(networks.recipe).items()}


def generator_nodes(recipe: Recipe) -> dict[str, Node]:
    """The generator's losses as the recipe states them, by their one term."""
    return {find("losses", node["kind"]).terms[0]: node for node in recipe.generator.losses.values()}


def build_critic(networks: FrozenNetworks, phase: Phase, seed: int) -> Critic | None:
    """The phase's critic, its weights drawn by `seed`, with the frozen network by which it judges where it has one."""
    if phase.adversary is None:
        return None
    node = phase.adversary.critic
    extractor = networks.extractor("critics", node)
    seed_initial_weights(seed)
    if extractor is None:
        tokenizer, arguments = find_tokenizer(networks.recipe)
        compared = tokenizer.capabilities(arguments).compared_shape(phase.train, networks.recipe.data.image_shape)
        return build("critics", node, channels=compared[0])
    derived = find("critics", node["kind"]).sizes_of(extractor)
    return build("critics", node, **derived).judge_by(extractor)


def critic_folder(recipe: Recipe, tokenizer: Path) -> Path | None:
    """Where the trained tokenizer's last critic lies; None when no phase had one, or the tokenizer was imported."""
    adversarial = [name for name, phase in recipe.tokenizer.phases.items() if phase.adversary is not None]
    folder = tokenizer / "phases" / adversarial[-1] / "critic" if adversarial else None
    return folder if folder is not None and folder.is_dir() else None


def carry_over(critic: Critic, folder: Path | None) -> tuple[Critic, bool]:
    """`critic` with the weights in `folder` where these fit it, and whether they do; the log says where not."""
    if folder is None or not folder.is_dir():
        log.warning("the tokenizer was trained without a critic, or came without it: a fresh one is trained")
        return critic, False
    stored, given = read_json(folder / "config.json"), json.loads(critic.to_json_string())
    if stored | {"_diffusers_version": None} != given | {"_diffusers_version": None}:
        log.warning("the tokenizer's critic in %s is of another make than this one's: a fresh one is trained", folder)
        return critic, False
    critic.load_state_dict(load_component(type(critic), folder).state_dict())
    return critic, True
