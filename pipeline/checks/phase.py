"""Whether a phase fits the tokenizer that it trains: its parameters, its losses, its critic, its terms and its loop.

Messages name settings inside the phase; the caller puts the name of the phase before them, by `at`. The task in
`pipeline.training.reconstruction` calls `check_task` for the tokenizer and the critic that it trains.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipeline.adversarial.base import loss_node
from pipeline.checks.equivariance import check_equivariance
from pipeline.components import Arguments, Node, build, check, find
from pipeline.critics.base import Critic
from pipeline.frozen.networks import check_extractor
from pipeline.losses.base import Attachment, Loss
from pipeline.nn.branched import last_layer_of
from pipeline.recipes.building import TokenizerPlan, output_layout
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.loops import NEW, Loop
from pipeline.recipes.schema import Recipe
from pipeline.recipes.tokenizer_training import Phase
from pipeline.validation import SettingError, at, check_known, check_names


def check_phase(
    recipe: Recipe,
    phase: Phase,
    tokenizer: TokenizerPlan,
    other_players: Sequence[str] = (),
    from_codes: bool = False,
) -> None:
    """Check a phase of the recipe; with `from_codes` it trains the decoder alone, on given codes."""
    with at("train"):
        check_known(phase.train, tokenizer.can.parts, "part")
    if phase.only:
        with at("only"):
            list(tokenizer.module.trainable(phase.train, phase.only))
    for name in phase.losses:
        check_loss(recipe, phase, tokenizer, name, from_codes)
    check_images_are_compared(phase, tokenizer)
    players = ["tokenizer", *other_players]
    critic = None
    if phase.adversary is not None:
        players.append("critic")
        node, where = phase.adversary.critic, "adversary.critic"
        judge, arguments = check("critics", node, DERIVED["critics"], where)
        critic = judge, arguments | {"channels": tokenizer.compared_shape(phase.train)[0]}
        with at(where):
            check_extractor(recipe, "critics", node)
        check("adversarial", loss_node(phase.adversary.loss), (), "adversary.loss")
    if phase.perturbation is not None:
        check("perturbations", phase.perturbation, DERIVED["perturbations"], "perturbation")
    check_task(phase, tokenizer, critic, from_codes)
    if phase.equivariance is not None:
        check_equivariance(phase, tokenizer)
    with at("loop"):
        check_loop(phase.loop, players, bool(tokenizer.can.own_rate) and not from_codes)


def check_task(
    phase: Phase,
    tokenizer: TokenizerPlan,
    critic: tuple[type[Critic], Arguments] | None,
    from_codes: bool = False,
) -> None:
    """The rules that need the phase alone; `critic` is the class and the arguments of its critic."""
    if critic is not None:
        with at("adversary"):
            check_adversary(phase, *critic, tokenizer)
            check_adaptive(phase, tokenizer)
    terms = terms_of(phase, None if from_codes else tokenizer)
    with at("weights"):
        check_names(phase.weights, terms, "loss term")
    check_balance(phase, tokenizer)
    for term in phase.until:
        with at(f"until.{term}"):
            check_known(term, phase.weights, "loss term")
    cuts = False
    if phase.perturbation is not None:
        with at("perturbation"):
            perturbation = build("perturbations", phase.perturbation)
            perturbation.check(tokenizer.spec, tokenizer.can)
            cuts = perturbation.cuts
    for name, loss in zip(phase.losses, losses_of(phase)):
        if loss.of_cut_codes and not cuts:
            raise SettingError(
                f"losses.{name}",
                f": {loss.__name__} weighs by how many tokens are left, and nothing cuts codes off; set"
                " perturbation={kind: prefix_drop} in this phase, or leave the loss out",
            )


def check_loss(recipe: Recipe, phase: Phase, tokenizer: TokenizerPlan, name: str, from_codes: bool = False) -> None:
    """ValueError where a loss cannot compare the phase's outputs, or its frozen network is not on this machine."""
    node = phase.losses[name]
    loss, arguments = check("losses", node, DERIVED["losses"], f"losses.{name}")
    with at(f"losses.{name}"):
        if from_codes and not loss.of_pixels:
            raise ValueError(f"{node['kind']} does not compare images, and this phase has nothing else; leave it out")
        if not loss.any_channels and not tokenizer.compares_pictures(phase.train):
            raise ValueError(
                f"{node['kind']} compares images of {tokenizer.image_shape[0]} channels, and train={phase.train} makes"
                f" {tokenizer.compared_shape(phase.train)[0]}; use pixel"
            )
        if missing := [feature for feature in loss.needs(arguments) if feature not in tokenizer.can.features]:
            kind = node["kind"]
            raise ValueError(f"{kind} reads {missing[0]}, which this tokenizer does not make; leave the loss out")
        if loss.extractor_kind is not None:
            check_comparison(phase, node, loss, arguments, tokenizer)
            check_extractor(recipe, "losses", node)


def check_comparison(
    phase: Phase, node: Node, loss: type[Loss], arguments: Arguments, tokenizer: TokenizerPlan
) -> None:
    """ValueError where a loss cannot compare a teacher's features with codes, images or a module of the tokenizer."""
    attachment = loss.attachment_of(arguments) or Attachment()
    if attachment.block is not None:
        raise SettingError("block", " is for a generator's losses; leave it out, or move the loss to generator.losses")
    if attachment.module is None and not loss.of_pixels:
        check_codes_move(phase, node)
    if arguments.get("source") == "perturbed" and phase.perturbation is None:
        raise SettingError("source", " is perturbed, but the phase has no perturbation; add one, or set source=clean")
    spec = tokenizer.spec
    if attachment.module is not None:
        grid, _ = output_layout(tokenizer.module, attachment.module)
        spec = replace(spec, grid=tuple(grid), levels=(), segments=())  # a map, whatever the code is
    loss.validate(spec, arguments)


def check_codes_move(phase: Phase, node: Node) -> None:
    """ValueError for a loss of codes in a phase that leaves them as they are."""
    if phase.train == "decoder":
        raise ValueError(
            f"{node['kind']} trains codes, and train=decoder leaves them as they are; leave it out of this phase"
        )


def check_images_are_compared(phase: Phase, tokenizer: TokenizerPlan) -> None:
    """ValueError where the phase trains the decoder, and no term reaches it."""
    compared = phase.adversary is not None or bool(terms_of_pixels(phase))
    if not compared and phase.train not in tokenizer.can.parts_without_pixels:
        instead = "".join(f", or set train={part}" for part in tokenizer.can.parts_without_pixels)
        raise SettingError("losses", f": none compares images, so nothing would train the decoder; add pixel{instead}")


def check_adversary(phase: Phase, critic: type[Critic], arguments: Arguments, tokenizer: TokenizerPlan) -> None:
    """ValueError where the critic cannot judge what the phase compares, or a setting is out of range."""
    adversary, (channels, *sides) = phase.adversary, tokenizer.compared_shape(phase.train)
    if adversary.ahead > adversary.start:
        raise SettingError(
            "ahead", f" is {adversary.ahead}, and start is {adversary.start}; give a number from 0 to start"
        )
    if min(sides) < (smallest := critic.smallest(arguments)):
        raise SettingError(
            "critic", f" needs images of {smallest} pixels per side or more, not {min(sides)}; give it fewer layers"
        )
    if critic.extractor_kind is not None and not tokenizer.compares_pictures(phase.train):
        raise SettingError("critic", f" judges pictures, and train={phase.train} makes {channels} channels; take patch")
    if critic.extractor_kind is None and channels != arguments.get("channels", 3):
        raise SettingError("critic", f" judges images of {arguments.channels} channels, and these have {channels}")
    if adversary.feature_matching and not critic.shows_layers:
        raise SettingError("feature_matching", f": a {critic.__name__} shows no layers to match; set it to false")


def check_adaptive(phase: Phase, tokenizer: TokenizerPlan) -> None:
    """ValueError where the adaptive weight of the adversarial term lacks one of the two gradients that it compares."""
    if not phase.adversary.adaptive:
        return
    if phase.train != "decoder" or phase.only:  # a whole decoder has its last layer, also of a model not yet fetched
        last = last_layer_of(tokenizer.module, phase.train)
        if all(trained is not last for trained in tokenizer.module.trainable(phase.train, phase.only)):
            raise SettingError(
                "adaptive", " compares gradients at the decoder's last layer, which is frozen; set it to false"
            )
    if not terms_of_pixels(phase):
        raise SettingError("adaptive", " compares with losses of pixels, and there are none; set it to false")


def check_balance(phase: Phase, tokenizer: TokenizerPlan) -> None:
    """ValueError where a balanced weight lacks one of the two gradients that it compares."""
    if not phase.balance:
        return
    if not (of_pixels := terms_of_pixels(phase)):
        raise SettingError("balance", " compares with losses of pixels, and there are none; leave it out")
    parameters = dict(tokenizer.module.named_parameters())
    trained = {id(parameter) for parameter in tokenizer.module.trainable(phase.train, phase.only)}
    for term, name in phase.balance.items():
        with at(f"balance.{term}"):
            check_known(term, phase.weights, "loss term")
            if term in of_pixels | {"adversarial"}:
                raise ValueError("this term is of pixels, with which balanced terms are compared; leave it out")
            check_known(name, parameters, "parameter")
            if id(parameters[name]) not in trained:
                raise ValueError(f"train={phase.train} does not train {name}; name a parameter that it does")


def check_loop(loop: Loop, players: Iterable[str], new: bool = False) -> None:
    """ValueError unless every player has a learning rate and an optimiser, and only players a decay or an average.

    Where a player has `new` parts, these may have a rate of their own.
    """
    players = list(players)
    if NEW in loop.lr and not new:
        raise SettingError(
            f"lr.{NEW}",
            " is a rate, and nothing is new in a network that was trained before, or has a rate of its own; add"
            " generator.start.reinitialise or generator.adapter, or leave it out",
        )
    if "kind" not in loop.optimizer:
        with at("optimizer"):
            check_names(loop.optimizer, players, "player")
    for player in players:
        place = "optimizer" if "kind" in loop.optimizer else f"optimizer.{player}"
        optimizer, _ = check("optimizers", loop.optimizer_of(player), DERIVED["optimizers"], place)
        with at(place):
            optimizer.check_machine()
    with at("lr"):
        check_names(set(loop.lr) - {NEW}, players, "player")
    for setting, value in {"weight_decay": loop.weight_decay, "ema": loop.ema}.items():
        for name in value if isinstance(value, dict) else ():
            with at(f"{setting}.{name}"):
                check_known(name, players, "player")


def terms_of(phase: Phase, tokenizer: TokenizerPlan | None) -> set[str]:
    """Names of all loss terms of a phase; without a `tokenizer`, of one that starts from codes.

    Raises ValueError where two losses give the same term.
    """
    names = [] if tokenizer is None else list(tokenizer.cls.terms(tokenizer.arguments))
    for loss in losses_of(phase):
        names += loss.terms
    if phase.adversary is not None:
        names += ["adversarial", "feature_matching"] if phase.adversary.feature_matching else ["adversarial"]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise SettingError("losses", f": two losses give the term {repeated[0]!r}; leave one of them out")
    return set(names)


def terms_of_pixels(phase: Phase) -> set[str]:
    """Names of the terms of the losses that compare images."""
    return {term for loss in losses_of(phase) if loss.of_pixels for term in loss.terms}


def losses_of(phase: Phase) -> list[type[Loss]]:
    """The classes of the phase's losses."""
    return [find("losses", node["kind"]) for node in phase.losses.values()]
