"""Whether network, objective, losses and sampling of a generator fit each other and the codes."""

import inspect
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.checks.phase import check_decay
from pipeline.code import LatentSpec
from pipeline.components import build, check, find, kinds
from pipeline.frozen.alignment_teacher import check_teacher, takes_tap
from pipeline.networks.base import Network
from pipeline.objectives.base import Objective
from pipeline.recipes.building import DERIVED, build_network, hidden_layout, network_shape
from pipeline.recipes.schema import Recipe
from pipeline.sampling.weak_network import check_weak_folder
from pipeline.validation import at, check_names


def check_generator(recipe: Recipe, spec: LatentSpec) -> Objective:
    part = recipe.generator
    cls, _ = check("objectives", part.objective, DERIVED["objectives"], "generator.objective")
    objective = build("objectives", part.objective)
    network, values = check("networks", part.network, DERIVED["networks"], "generator.network")
    check_pair(recipe, spec, network, cls)
    values = values | network_shape(spec, 0, objective)  # the classes are counted later
    network.validate(values)
    objective.check_network(values)
    objective.check_codes(spec)
    check_milestones(recipe)
    check_class_token(recipe, network, objective)
    terms = [*objective.terms, *check_hidden_losses(recipe, spec, network, objective)]
    with at("generator.weights"):
        check_names(part.weights, terms, "loss term")
    with at("generator.loop.lr"):
        check_names(part.loop.lr, ["network"], "player")
    check_decay(part.loop, ["network"], "generator.loop.weight_decay")
    return objective


def check_pair(recipe: Recipe, spec: LatentSpec, network: type[Network], objective: type[Objective]) -> None:
    """ValueError unless the objective models the codes there are, and trains this kind of network."""
    kind = recipe.generator.objective["kind"]
    if objective.discrete != bool(spec.vocab):
        wants, has = ("ids", "continuous codes") if objective.discrete else ("continuous codes", f"ids of {spec.vocab}")
        others = [name for name in kinds("objectives") if find("objectives", name).discrete != objective.discrete]
        raise ValueError(
            f"generator.objective {kind} models {wants}, but the tokenizer gives {has}; take another bottleneck, or an"
            f" objective of {', '.join(others)}"
        )
    if network.role != objective.role:
        fitting = [name for name in kinds("networks") if find("networks", name).role == objective.role]
        raise ValueError(
            f"generator.network {recipe.generator.network['kind']} is a {network.role} network, but {kind} trains a"
            f" {objective.role} one; set generator.network.kind={' or '.join(fitting)}"
        )


def check_hidden_losses(recipe: Recipe, spec: LatentSpec, network: type[Network], objective: Objective) -> list[str]:
    """Terms of the generator's losses; ValueError where one does not compare hidden states that the network has."""
    part, terms = recipe.generator, []
    if recipe.latents.features and not part.losses:
        raise ValueError("latents.features is true, but generator.losses names no loss with a teacher; set it to false")
    for name, node in part.losses.items():
        where = f"generator.losses.{name}"
        loss, stated = check("losses", node, DERIVED["losses"], where)
        if not takes_tap(node) or stated.get("block") is None or stated.get("at") is not None:
            raise ValueError(
                f"{where}: a generator's losses compare hidden states with a teacher's features: use feature_cosine,"
                " relational or gram, and state the block, for example block: 8"
            )
        if network.tapped is Network.tapped:
            raise ValueError(f"{where}: {part.network['kind']} does not show its hidden states; leave this loss out")
        with torch.device("meta"):
            built = build_network(recipe, spec, 1, objective)
        try:
            grid, _ = hidden_layout(built, stated["block"])
            loss.validate(replace(spec, grid=tuple(grid)), stated)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        check_teacher(node, recipe.weights, recipe.data.size, where)
        terms += loss.terms
    if twice := sorted({term for term in terms if terms.count(term) > 1}):
        raise ValueError(f"generator.losses: two give the term {twice[0]!r}; leave one of them out")
    return terms


def check_class_token(recipe: Recipe, network: type[Network], objective: Objective) -> None:
    """ValueError unless a class token is stored, modelled and read, or none of the three."""
    teacher, width, where = recipe.latents.class_token, objective.class_token, "generator.objective.class_token"
    if bool(width) != bool(teacher):
        raise ValueError(
            f"latents.class_token is {teacher}, but {where} is {width}: state the vision model whose class feature is"
            " stored, and how many values it has, or neither of the two"
        )
    if not width:
        return
    if "class_token" not in inspect.signature(network.__init__).parameters:
        raise ValueError(
            f"{where}: a {recipe.generator.network['kind']} reads no class token; use diffusion_transformer"
        )
    if recipe.sample.guidance_channels is not None:
        raise ValueError(f"sample.guidance_channels: with {where} all channels are guided; leave it out")
    if recipe.joint is not None:
        raise ValueError(f"joint: codes that are still being trained are stored nowhere; leave {where} out")
    check_teacher({"teacher": teacher}, recipe.weights, recipe.data.size, "latents.class_token")


def check_milestones(recipe: Recipe) -> None:
    part = recipe.generator
    for step in part.milestones:
        if not 1 <= step <= part.loop.steps:
            raise ValueError(f"generator.milestones: step {step} is not one of generator.loop.steps={part.loop.steps}")


def check_sampling(recipe: Recipe, spec: LatentSpec, objective: Objective) -> None:
    settings = objective.read_settings(recipe.sample.sampler, "sample.sampler")
    objective.check_sampler(objective.steps_for(spec, recipe.sample.steps), spec, settings)
    if recipe.sample.weak is not None:
        return check_weak(recipe, objective)
    dropped = recipe.generator.network.get("class_drop")
    if recipe.sample.guidance != 1 and dropped == 0:
        raise ValueError(
            f"sample.guidance is {recipe.sample.guidance:g}, but generator.network.class_drop is 0: the network never"
            " learns the unconditional prediction; set class_drop=0.1 or guidance=1"
        )


def check_weak(recipe: Recipe, objective: Objective) -> None:
    """ValueError where sample.weak cannot guide, or would not be asked."""
    weak, milestones = recipe.sample.weak, recipe.generator.milestones
    if not objective.autoguided:
        raise ValueError(f"sample.weak is for continuous codes; {type(objective).__name__} models ids: leave it out")
    if recipe.sample.guidance == 1:
        raise ValueError("sample.weak is stated, but at sample.guidance=1 nobody asks it; set another guidance")
    if weak.step is not None and weak.step not in milestones:
        kept = [*milestones, weak.step]
        raise ValueError(f"sample.weak.step={weak.step} is not kept by training; set generator.milestones={kept}")
    if weak.folder is not None:
        check_weak_folder(Path(weak.folder), objective)
