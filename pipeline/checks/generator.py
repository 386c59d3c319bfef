"""Whether network, objective and losses of a generator fit each other and the codes."""

from dataclasses import replace

import torch

from pipeline.checks.phase import check_loop
from pipeline.checks.transplant import check_transplant
from pipeline.code import LatentSpec, TextSpec
from pipeline.components import Arguments, build, check, constructor_parameters, find, kinds
from pipeline.frozen.class_token import PLACE as CLASS_TOKEN
from pipeline.frozen.class_token import ClassToken
from pipeline.frozen.networks import check_extractor
from pipeline.losses.base import Loss
from pipeline.networks.base import Network
from pipeline.objectives.base import Objective
from pipeline.recipes.building import build_network, find_text_spec, find_tokenizer, hidden_layout, network_shape
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.schema import Recipe
from pipeline.validation import SettingError, at, check_names


def check_generator(recipe: Recipe, spec: LatentSpec) -> Objective:
    """The objective, if network, losses and loop go with it; ValueError with one line that says what to change."""
    generator = recipe.generator
    cls, _ = check("objectives", generator.objective, DERIVED["objectives"], "generator.objective")
    network, values = check("networks", generator.network, DERIVED["networks"], "generator.network")
    objective = build("objectives", generator.objective)
    derived = network_shape(spec, 0, objective, check_captions(recipe, network))  # classes are counted later
    values = values | {name: value for name, value in derived.items() if name in constructor_parameters(network)}
    with at("generator"):
        check_pair(recipe, spec, network, cls)
        with at("network"):
            network.validate(values)
            objective.check_network(values)
            check_taken(recipe, network)
        with at("objective"):
            objective.check_codes(spec)
        check_milestones(recipe)
        check_transplant(generator.start, spec, network)
        if generator.starts_joint and recipe.joint is None:
            raise SettingError("start", " is joint, but no network is trained jointly; add joint, or name a folder")
    check_class_token(recipe, network, objective)
    with at("generator"):
        terms = [*objective.terms, *check_hidden_losses(recipe, spec, network, objective)]
        with at("weights"):
            check_names(generator.weights, terms, "loss term")
        with at("loop"):
            check_loop(generator.loop, ["network"], generator.has_new_parts)
    return objective


def check_taken(recipe: Recipe, network: type[Network]) -> None:
    """ValueError where the network takes of the tokenizer's bottleneck what that does not have."""
    if network.taken:
        _, arguments = find_tokenizer(recipe)
        build("bottlenecks", arguments.bottleneck).level_tables()


def check_pair(recipe: Recipe, spec: LatentSpec, network: type[Network], objective: type[Objective]) -> None:
    """ValueError unless the objective models codes of this kind, and trains this kind of network."""
    kind = recipe.generator.objective["kind"]
    if objective.discrete != bool(spec.vocab):
        models = "ids" if objective.discrete else "continuous codes"
        given = f"ids of {spec.vocab}" if spec.vocab else "continuous codes"
        others = [name for name in kinds("objectives") if find("objectives", name).discrete != objective.discrete]
        raise SettingError(
            "objective",
            f": {kind} models {models}, but the tokenizer gives {given}; take another bottleneck, or an objective of"
            f" {', '.join(others)}",
        )
    check_ends(recipe, spec, network, objective)
    if network.role != objective.role:
        fitting = [name for name in kinds("networks") if find("networks", name).role == objective.role]
        raise SettingError(
            "network",
            f": {recipe.generator.network['kind']} is a {network.role} network, but {kind} trains a {objective.role}"
            f" one; set generator.network.kind={' or '.join(fitting)}",
        )


def check_ends(recipe: Recipe, spec: LatentSpec, network: type[Network], objective: type[Objective]) -> None:
    """ValueError where rows of the codes end early, and objective or network makes rows of full length alone."""
    if not spec.ends:
        return
    fitting = [name for name in kinds("objectives") if find("objectives", name).ends]
    reading = [name for name in kinds("networks") if "ends" in constructor_parameters(find("networks", name))]
    for node, fits, names in (
        ("objective", objective.ends, fitting),
        ("network", "ends" in constructor_parameters(network), reading),
    ):
        if not fits:
            kind = getattr(recipe.generator, node)["kind"]
            raise SettingError(
                node,
                f": {kind} makes rows of full length, and those of this tokenizer end where an image needs no more"
                f" tokens; set generator.{node}.kind={' or '.join(names)}",
            )


def check_captions(recipe: Recipe, network: type[Network]) -> TextSpec | None:
    """The geometry of the captions that the network reads; SettingError where it cannot read them."""
    text, condition = find_text_spec(recipe), recipe.generator.condition
    if text is not None and "text_tokens" not in constructor_parameters(network):
        reading = [
            name for name in kinds("networks") if "text_tokens" in constructor_parameters(find("networks", name))
        ]
        others = [name for name in reading if find("networks", name).role == network.role]
        instead = f"set generator.network.kind={' or '.join(others)}, or " if others else "set "
        kind = recipe.generator.network["kind"]
        raise SettingError(
            "generator.condition",
            f" is {condition}, and a {kind} reads no captions; {instead}generator.condition=class",
        )
    return text


def check_hidden_losses(recipe: Recipe, spec: LatentSpec, network: type[Network], objective: Objective) -> list[str]:
    """Terms of the generator's losses; ValueError for a loss that compares no hidden states which the network has."""
    generator, terms = recipe.generator, []
    if recipe.latents.features and not generator.losses:
        raise SettingError("losses", " is empty, but latents.features is true; set that to false, or add a loss")
    for name, node in generator.losses.items():
        loss, arguments = check("losses", node, DERIVED["losses"], f"losses.{name}")
        with at(f"losses.{name}"):
            block = check_block(loss, arguments, network)
            if loss.attachment_of(arguments).class_token and not objective.class_token:
                raise SettingError("class_token", " is true, and the generator denoises none; leave it out")
            with torch.device("meta"):
                built = build_network(recipe, spec, 1, objective)
            grid, _ = hidden_layout(built, block)
            loss.validate(replace(spec, grid=tuple(grid)), arguments)
            check_extractor(recipe, "losses", node)
        terms += loss.terms
    if repeated := sorted({term for term in terms if terms.count(term) > 1}):
        raise SettingError("losses", f": two losses give the term {repeated[0]!r}; leave one of them out")
    return terms


def check_block(loss: type[Loss], arguments: Arguments, network: type[Network]) -> int:
    """The block whose hidden states a loss compares; ValueError where it compares others, or the network has none."""
    attachment = loss.attachment_of(arguments)
    if attachment is None or attachment.block is None or attachment.module is not None:
        raise ValueError(
            "a generator's losses compare the hidden states after a block with a teacher's features; use"
            " feature_cosine, relational or gram, and give the block, for example block: 8"
        )
    if network.tap_blocks is Network.tap_blocks:
        raise ValueError(f"a {network.__name__} does not show its hidden states; leave this loss out")
    return attachment.block


def check_class_token(recipe: Recipe, network: type[Network], objective: Objective) -> None:
    """ValueError unless a class token is stored, modelled and read, or none of the three."""
    teacher, width, where = recipe.latents.class_token, objective.class_token, "generator.objective.class_token"
    if bool(width) != bool(teacher):
        raise ValueError(
            f"latents.class_token is {teacher}, but {where} is {width}; set both (the vision model whose class feature"
            " is stored, and how many values it has) or neither"
        )
    if not width:
        return
    if "class_token" not in constructor_parameters(network):
        kind = recipe.generator.network["kind"]
        raise SettingError(where, f": a {kind} reads no class token; set generator.network.kind=diffusion_transformer")
    if recipe.joint is not None:
        raise SettingError(where, f" is {width}, but in joint training no class token is stored; leave joint or it out")
    with at(CLASS_TOKEN):
        ClassToken(recipe).check()


def check_milestones(recipe: Recipe) -> None:
    generator = recipe.generator
    for step in generator.milestones:
        if step > generator.loop.steps:
            raise SettingError("milestones", f": there is no step {step}; give steps from 1 to {generator.loop.steps}")
