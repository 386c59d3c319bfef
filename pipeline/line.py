"""Whether the parts of a recipe fit together, and building them from what earlier stages determine."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.call_arguments import check_settings
from pipeline.code import LatentSpec
from pipeline.components import build, check, find, kinds, match_names, suggestion
from pipeline.frozen.alignment_teacher import check_teacher, takes_tap
from pipeline.frozen.class_teacher import check_class_teacher, takes_class_teacher
from pipeline.frozen.critic_teacher import check_critic_teacher, takes_features
from pipeline.networks.base import Network
from pipeline.objectives.base import Objective
from pipeline.recipe import Equivariance, Loop, Phase, Recipe
from pipeline.reconstruction import check_balance, expected_terms
from pipeline.tokenizers.base import Tokenizer
from pipeline.training.equivariance import check_equivariance, check_passage
from pipeline.training.loss_heads import output_layout
from pipeline.weak_network import check_weak_folder

DERIVED = {  # what a recipe may not state, by slot
    "datasets": ("split",),
    "tokenizers": ("image_size",),
    "networks": ("grid", "dim", "vocab", "codebooks", "num_classes", "outputs", "class_token"),
    "objectives": (),
    "losses": ("backbone", "class_teacher", "tap", "dim", "grid"),
    "critics": ("widths", "source"),
    "perturbations": (),
}


@dataclass(frozen=True)
class Line:
    """What a recipe comes to before anything is built."""

    tokenizer: type[Tokenizer]
    spec: LatentSpec
    network: type[Network]
    objective: Objective


def check_line(recipe: Recipe) -> Line:
    """Check every section against the components it names; ValueError with one line that says what to change."""
    check("datasets", recipe.data.source, DERIVED["datasets"], "data.source")
    tokenizer, spec = check_tokenizer(recipe)
    objective = check_generator(recipe, spec)
    check_joint_training(recipe)
    check_sampling(recipe, spec, objective)
    check_posttraining(recipe, tokenizer)
    check_evaluation(recipe)
    return Line(tokenizer, spec, find("networks", recipe.generator.network["kind"]), objective)


def check_tokenizer(recipe: Recipe) -> tuple[type[Tokenizer], LatentSpec]:
    part = recipe.tokenizer
    cls, arguments = check("tokenizers", part.model, DERIVED["tokenizers"], "tokenizer.model")
    spec = cls.geometry(image_size=recipe.data.size, **arguments)
    for name, phase in part.phases.items():
        check_whole_phase(recipe, phase, f"tokenizer.phases.{name}")
    check_passages(recipe)
    if not part.phases and not cls.frozen and part.start is None:
        raise ValueError(
            "tokenizer.phases is empty: a tokenizer of our own needs a phase that trains it, or tokenizer.start=FOLDER"
        )
    return cls, spec


def check_whole_phase(recipe: Recipe, phase: Phase, where: str, others: Sequence[str] = ()) -> None:
    """Check a phase that sees images; `others` are players that it has besides the tokenizer and its critic."""
    cls, arguments = check("tokenizers", recipe.tokenizer.model, DERIVED["tokenizers"], "tokenizer.model")
    spec = cls.geometry(image_size=recipe.data.size, **arguments)
    check_phase(phase, cls, arguments, recipe.data.size, where, others=others)
    check_perturbation(phase, cls, spec, f"{where}.perturbation")
    check_class_teachers(phase, cls, arguments, recipe.weights, f"{where}.losses")
    check_alignments(recipe, phase, spec, where)
    check_critic(recipe, phase, where)
    if phase.only:
        check_only(recipe, phase, where)
    if phase.equivariance:
        losses = {name: check("losses", node, DERIVED["losses"]) for name, node in phase.losses.items()}
        part = phase.adversary
        critic = None if part is None else check("critics", part.critic, DERIVED["critics"])
        try:
            check_equivariance(phase, losses, critic, (cls, arguments), spec, recipe.data.size)
        except ValueError as error:
            raise ValueError(f"{where}.equivariance: {error}") from None
    if phase.balance:
        check_balances(recipe, phase, where)


def check_critic(recipe: Recipe, phase: Phase, where: str) -> None:
    """ValueError where the network by which a critic judges cannot be had."""
    if phase.adversary is not None and takes_features(phase.adversary.critic):
        check_critic_teacher(phase.adversary.critic, recipe.weights, recipe.data.size, f"{where}.adversary.critic")


def check_only(recipe: Recipe, phase: Phase, where: str) -> None:
    """ValueError where a phase names modules that are none of the part it trains; builds on the meta device."""
    try:
        list(on_meta(recipe).trainable(phase.train, phase.only))
    except ValueError as error:
        raise ValueError(f"{where}.only: {error}") from None


def check_phase(
    phase: Phase,
    tokenizer: type[Tokenizer],
    arguments: dict[str, Any],
    image_size: int,
    where: str,
    from_codes: bool = False,
    others: Sequence[str] = (),
) -> None:
    if phase.train not in (parts := list(tokenizer.trained_parts)):
        raise ValueError(f"{where}.train: this tokenizer has no part {phase.train!r}{suggestion(phase.train, parts)}")
    check_losses(phase, tokenizer, arguments, image_size, where)
    players = ["tokenizer"]
    if phase.adversary:
        critic, values = check("critics", phase.adversary.critic, DERIVED["critics"], f"{where}.adversary.critic")
        channels, size = tokenizer.view_shape(phase.train, image_size, **arguments)
        if size < (smallest := critic.smallest(**values)):
            raise ValueError(f"{where}.adversary.critic judges images of {smallest} px or more, these are of {size}")
        if channels != values.get("channels", 3):
            raise ValueError(f"{where}.adversary.critic has images of {channels} channels; set its channels={channels}")
        if phase.adversary.feature_matching and not critic.shows_layers:
            raise ValueError(
                f"{where}.adversary.feature_matching: this critic shows no layers to match; set it to false"
            )
        players.append("critic")
    terms = expected_terms(None if from_codes else tokenizer, arguments, phase)
    match_names(phase.weights, terms, f"{where}.weights", "loss term")
    match_names(phase.loop.lr, [*players, *others], f"{where}.loop.lr", "player")
    check_decay(phase.loop, [*players, *others], f"{where}.loop.weight_decay")


def check_decay(loop: Loop, players: Sequence[str], where: str) -> None:
    for name in loop.weight_decay if isinstance(loop.weight_decay, dict) else ():
        if name not in players:
            raise ValueError(f"{where}.{name}: there is no player {name!r}{suggestion(name, list(players))}")


def check_losses(
    phase: Phase, tokenizer: type[Tokenizer], arguments: dict[str, Any], image_size: int, where: str
) -> None:
    """ValueError where a loss reads what the tokenizer does not make, or none of them reaches what is trained."""
    of_pixels = phase.adversary is not None
    channels, _ = tokenizer.view_shape(phase.train, image_size, **arguments)
    for name, node in phase.losses.items():
        loss, stated = check("losses", node, DERIVED["losses"], f"{where}.losses.{name}")
        of_pixels |= loss.of_pixels
        if not loss.any_channels and channels != 3:
            raise ValueError(
                f"{where}.losses.{name} sees colours, and {phase.train} has {channels} channels; take pixel"
            )
        if missing := [read for read in loss.needs(**stated) if read not in tokenizer.feature_names(**arguments)]:
            raise ValueError(f"{where}.losses.{name} reads {missing[0]}, which this tokenizer does not make")
    if not of_pixels and phase.train not in tokenizer.without_pixels:
        able = "".join(f", or set train={part}" for part in tokenizer.without_pixels)
        raise ValueError(
            f"{where}.losses: none is of pixels, so what makes them would be trained by nothing; add one{able}"
        )


def check_perturbation(phase: Phase, tokenizer: type[Tokenizer], spec: LatentSpec, where: str) -> None:
    if phase.perturbation is None:
        return
    check("perturbations", phase.perturbation, DERIVED["perturbations"], where)
    try:
        build("perturbations", phase.perturbation).check(tokenizer, spec)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_passages(recipe: Recipe) -> None:
    """ValueError where transformed codes or images do not pass; builds the tokenizer on the meta device for that."""
    phases = {name: phase.equivariance for name, phase in recipe.tokenizer.phases.items() if phase.equivariance}
    tokenizer = on_meta(recipe) if phases else None
    passed: list[Equivariance] = []
    for name, part in phases.items():
        if part not in passed:
            try:
                check_passage(part, tokenizer)
            except ValueError as error:
                raise ValueError(f"tokenizer.phases.{name}.equivariance: {error}") from None
            passed.append(part)


def check_class_teachers(
    phase: Phase, tokenizer: type[Tokenizer], arguments: dict[str, Any], stated: dict[str, str], where: str
) -> None:
    for name, node in phase.losses.items():
        if takes_class_teacher(node):
            check_codes_move(phase, f"{where}.{name}")
            try:
                check_class_teacher(node, tokenizer, arguments, stated)
            except ValueError as error:
                raise ValueError(f"{where}.{name}: {error}") from None


def check_codes_move(phase: Phase, where: str) -> None:
    """ValueError where a loss of codes is in a phase that leaves them as they are."""
    if phase.train == "decoder":
        raise ValueError(f"{where} aligns codes, which train=decoder leaves as they are; take it out of this phase")


def check_alignments(recipe: Recipe, phase: Phase, spec: LatentSpec, where: str) -> None:
    """ValueError where codes have no places to align, a teacher cannot be had, or what is aligned is frozen."""
    for name, node in phase.losses.items():
        if not takes_tap(node):
            continue
        at = f"{where}.losses.{name}"
        loss, stated = check("losses", node, DERIVED["losses"], at)
        if stated.get("block") is not None:
            raise ValueError(f"{at}.block is of a generator; take it out, or state this loss under generator.losses")
        if stated.get("at") is None and not loss.of_pixels:
            check_codes_move(phase, at)
        if stated.get("source") == "shown" and phase.perturbation is None:
            raise ValueError(f"{at}.source is shown, but there is no perturbation; state one, or set source=clean")
        compared = spec
        try:
            if stated.get("at") is not None:
                grid, _ = output_layout(on_meta(recipe), stated["at"])
                compared = replace(spec, grid=tuple(grid))
            loss.validate(compared, **stated)
        except ValueError as error:
            raise ValueError(f"{at}: {error}") from None
        check_teacher(node, recipe.weights, recipe.data.size, at)


def check_balances(recipe: Recipe, phase: Phase, where: str) -> None:
    """ValueError where a phase balances what it cannot; builds the tokenizer on the meta device, for its parameters."""
    tokenizer = on_meta(recipe)
    losses = [check("losses", node, DERIVED["losses"]) for node in phase.losses.values()]
    try:
        check_balance(tokenizer, phase, {term for loss, at in losses if loss.of_pixels for term in loss.terms(**at)})
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def check_generator(recipe: Recipe, spec: LatentSpec) -> Objective:
    part = recipe.generator
    cls, arguments = check("objectives", part.objective, DERIVED["objectives"], "generator.objective")
    objective = build("objectives", part.objective)
    network, values = check("networks", part.network, DERIVED["networks"], "generator.network")
    check_pair(recipe, spec, network, cls)
    network.validate(spec.grid, **values)
    objective.check_network(**values)
    objective.check_codes(spec)
    check_milestones(recipe)
    check_class_token(recipe, network, objective)
    terms = [*cls.terms(**arguments), *check_hidden_losses(recipe, spec, network, objective)]
    match_names(part.weights, terms, "generator.weights", "loss term")
    match_names(part.loop.lr, ["network"], "generator.loop.lr", "player")
    check_decay(part.loop, ["network"], "generator.loop.weight_decay")
    return objective


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
        if "taps" not in inspect.signature(network.forward).parameters:
            raise ValueError(f"{where}: {part.network['kind']} does not show its hidden states; leave this loss out")
        with torch.device("meta"):
            built = build_network(recipe, spec, 1, objective)
        try:
            grid, _ = hidden_layout(built, stated["block"])
            loss.validate(replace(spec, grid=tuple(grid)), **stated)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        check_teacher(node, recipe.weights, recipe.data.size, where)
        terms += loss.terms(**stated)
    if twice := sorted({term for term in terms if terms.count(term) > 1}):
        raise ValueError(f"generator.losses: two give the term {twice[0]!r}; leave one of them out")
    return terms


@torch.no_grad()
def hidden_layout(network: Network, block: int) -> tuple[list[int], int]:
    """Grid and width of the hidden states after a block; ValueError where there is no such block. Computes nothing."""
    config = network.config
    with torch.device("meta"):
        stated = {name: value for name, value in config.items() if not name.startswith("_")}
        shadow = type(network)(**stated).to("meta")
    z, time = (torch.zeros(shape, device="meta") for shape in ((1, *shadow.state_shape), (1,)))
    _, (states,) = shadow(z, time, None, taps=(block,))
    patch = round((math.prod(config.grid) / states.shape[1]) ** (1 / len(config.grid)))
    return [side // patch for side in config.grid], states.shape[2]


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


def check_sampling(recipe: Recipe, spec: LatentSpec, objective: Objective) -> None:
    settings = check_settings(objective, recipe.sample.sampler, where="sample.sampler.")
    objective.check_sampler(objective.steps_for(spec, recipe.sample.steps), spec, **settings)
    if recipe.sample.weak is not None:
        return check_weak(recipe, objective)
    dropped = recipe.generator.network.get("class_drop")
    if recipe.sample.guidance != 1 and dropped == 0:
        raise ValueError(
            f"sample.guidance is {recipe.sample.guidance:g}, but generator.network.class_drop is 0: the network never"
            " learns the unconditional prediction; set class_drop=0.1 or guidance=1"
        )


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


def check_joint_training(recipe: Recipe) -> None:
    """ValueError where nothing would reach the tokenizer by way of the generator, or a term would come twice."""
    if recipe.joint is None:
        return
    phase, nodes = recipe.joint.phase, recipe.generator.losses.values()
    if not nodes:
        raise ValueError(
            "joint trains the tokenizer by generator.losses, and there are none; state one, for example"
            " alignment: {kind: feature_cosine, block: 8}"
        )
    if phase.train == "decoder":
        raise ValueError("joint.phase.train is decoder, and so codes stay what they are; set train: all, or encoder")
    if phase.equivariance:
        raise ValueError("joint.phase.equivariance: the generator has codes of one size alone; leave it out")
    check_whole_phase(recipe, phase, "joint.phase", others=["network"])
    terms = {term for node in nodes for term in find("losses", node["kind"]).terms()}
    match_names(recipe.joint.alignment, terms, "joint.alignment", "term of generator.losses")
    if twice := sorted(terms & set(phase.weights)):
        raise ValueError(f"joint.phase.losses gives {twice[0]!r}, which generator.losses gives too; leave one out")


def check_milestones(recipe: Recipe) -> None:
    part = recipe.generator
    for step in part.milestones:
        if not 1 <= step <= part.loop.steps:
            raise ValueError(f"generator.milestones: step {step} is not one of generator.loop.steps={part.loop.steps}")


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


def check_posttraining(recipe: Recipe, tokenizer: type[Tokenizer]) -> None:
    """ValueError where post-training trains more than a decoder, or by losses that need more than its images."""
    if recipe.posttrain is None:
        return
    phase, where = recipe.posttrain.phase, "posttrain.phase"
    if phase.train != "decoder":
        raise ValueError(f"{where}.train is {phase.train!r}, but codes must stay what they are; set train: decoder")
    if phase.balance:
        raise ValueError(
            f"{where}.balance is of terms that are not of pixels, and a decoder makes nothing else; leave it out"
        )
    if phase.equivariance:
        raise ValueError(f"{where}.equivariance transforms codes that are encoded, not those given here; leave it out")
    if not phase.losses:
        raise ValueError(f"{where}.losses is empty, and so held-out pairs have no error; name one, for example pixel")
    for name, node in phase.losses.items():
        loss, _ = check("losses", node, DERIVED["losses"], f"{where}.losses.{name}")
        if not loss.of_pixels:
            raise ValueError(f"{where}.losses.{name} is not of pixels, which are all a decoder makes; leave it out")
        if takes_tap(node):
            check_teacher(node, recipe.weights, recipe.data.size, f"{where}.losses.{name}")
    check_phase(phase, tokenizer, {}, recipe.data.size, where, from_codes=True)
    check_critic(recipe, phase, where)
    if phase.only:
        check_only(recipe, phase, where)


def check_evaluation(recipe: Recipe) -> None:
    """ValueError where features, their weights or the reference are not on this machine."""
    from pipeline.measuring.feature_choice import check_features
    from pipeline.measuring.reference import check_reference

    check_features(recipe.evaluate.features, recipe.weights)
    check_reference(recipe.evaluate.reference, recipe.evaluate.features)


def build_tokenizer(recipe: Recipe) -> Tokenizer:
    """The tokenizer before its training; its weights are drawn by torch's global generator, see `seeded`."""
    return build("tokenizers", recipe.tokenizer.model, image_size=recipe.data.size)


def on_meta(recipe: Recipe) -> Tokenizer:
    """The tokenizer without weights, whose parameters and shapes are those of the real one."""
    with torch.device("meta"):
        return build_tokenizer(recipe).to("meta")


def build_network(recipe: Recipe, spec: LatentSpec, num_classes: int, objective: Objective) -> Network:
    derived = {"grid": list(spec.grid), "dim": spec.dim, "vocab": spec.vocab, "codebooks": spec.codebooks}
    derived |= {"num_classes": num_classes, "outputs": objective.outputs, "class_token": objective.class_token}
    return build("networks", recipe.generator.network, **derived)


def classes_told(recipe: Recipe, there: int) -> int:
    """All classes of the images, `there` of them, or 0 where the generator is told none; ValueError of none."""
    if recipe.generator.condition == "none":
        return 0
    if not there:
        raise ValueError("the images have no classes; set generator.condition=none and sample.guidance=1")
    return there


def seeded(seed: int) -> None:
    """Seed torch's global generator: for the initial weights, the one draw that modules make themselves."""
    torch.manual_seed(seed)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
