"""Whether a phase of a training fits the tokenizer that it trains, and whether all that it needs is there."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.code import LatentSpec
from pipeline.components import Arguments, build, check
from pipeline.frozen.alignment_teacher import check_teacher, takes_tap
from pipeline.frozen.class_teacher import check_class_teacher, takes_class_teacher
from pipeline.frozen.critic_teacher import check_critic_teacher, takes_features
from pipeline.recipes.building import DERIVED, find_tokenizer, on_meta
from pipeline.recipes.schema import Loop, Phase, Recipe
from pipeline.tokenizers.base import Tokenizer
from pipeline.training.equivariance import check_equivariance
from pipeline.training.loss_heads import output_layout
from pipeline.training.reconstruction import check_balance, expected_terms
from pipeline.validation import at, check_names, suggestion


def check_whole_phase(recipe: Recipe, phase: Phase, where: str, others: Sequence[str] = ()) -> None:
    """Check a phase that sees images; `others` are players that it has besides the tokenizer and its critic."""
    cls, arguments = find_tokenizer(recipe)
    spec = cls.geometry(arguments)
    check_phase(phase, cls, arguments, where, others=others)
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


def check_phase(
    phase: Phase,
    tokenizer: type[Tokenizer],
    arguments: Arguments,
    where: str,
    from_codes: bool = False,
    others: Sequence[str] = (),
) -> None:
    if phase.train not in (parts := list(tokenizer.trained_parts)):
        raise ValueError(f"{where}.train: this tokenizer has no part {phase.train!r}{suggestion(phase.train, parts)}")
    check_losses(phase, tokenizer, arguments, where)
    players = ["tokenizer"]
    if phase.adversary:
        critic, values = check("critics", phase.adversary.critic, DERIVED["critics"], f"{where}.adversary.critic")
        channels, size = tokenizer.view_shape(phase.train, arguments)
        if size < (smallest := critic.smallest(values)):
            raise ValueError(f"{where}.adversary.critic judges images of {smallest} px or more, these are of {size}")
        if channels != values.get("channels", 3):
            raise ValueError(f"{where}.adversary.critic has images of {channels} channels; set its channels={channels}")
        if phase.adversary.feature_matching and not critic.shows_layers:
            raise ValueError(
                f"{where}.adversary.feature_matching: this critic shows no layers to match; set it to false"
            )
        players.append("critic")
    terms = expected_terms(None if from_codes else tokenizer, arguments, phase)
    with at(f"{where}.weights"):
        check_names(phase.weights, terms, "loss term")
    with at(f"{where}.loop.lr"):
        check_names(phase.loop.lr, [*players, *others], "player")
    check_decay(phase.loop, [*players, *others], f"{where}.loop.weight_decay")


def check_losses(phase: Phase, tokenizer: type[Tokenizer], arguments: Arguments, where: str) -> None:
    """ValueError where a loss reads what the tokenizer does not make, or none of them reaches what is trained."""
    of_pixels = phase.adversary is not None
    channels, _ = tokenizer.view_shape(phase.train, arguments)
    for name, node in phase.losses.items():
        loss, stated = check("losses", node, DERIVED["losses"], f"{where}.losses.{name}")
        of_pixels |= loss.of_pixels
        if not loss.any_channels and channels != 3:
            raise ValueError(
                f"{where}.losses.{name} sees colours, and {phase.train} has {channels} channels; take pixel"
            )
        if missing := [read for read in loss.needs(stated) if read not in tokenizer.feature_names(arguments)]:
            raise ValueError(f"{where}.losses.{name} reads {missing[0]}, which this tokenizer does not make")
    if not of_pixels and phase.train not in tokenizer.without_pixels:
        able = "".join(f", or set train={part}" for part in tokenizer.without_pixels)
        raise ValueError(
            f"{where}.losses: none is of pixels, so what makes them would be trained by nothing; add one{able}"
        )


def check_decay(loop: Loop, players: Sequence[str], where: str) -> None:
    for name in loop.weight_decay if isinstance(loop.weight_decay, dict) else ():
        if name not in players:
            raise ValueError(f"{where}.{name}: there is no player {name!r}{suggestion(name, list(players))}")


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


def check_perturbation(phase: Phase, tokenizer: type[Tokenizer], spec: LatentSpec, where: str) -> None:
    if phase.perturbation is None:
        return
    check("perturbations", phase.perturbation, DERIVED["perturbations"], where)
    try:
        build("perturbations", phase.perturbation).check(tokenizer, spec)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_class_teachers(
    phase: Phase, tokenizer: type[Tokenizer], arguments: Arguments, stated: dict[str, str], where: str
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
            loss.validate(compared, stated)
        except ValueError as error:
            raise ValueError(f"{at}: {error}") from None
        check_teacher(node, recipe.weights, recipe.data.size, at)


def check_balances(recipe: Recipe, phase: Phase, where: str) -> None:
    """ValueError where a phase balances what it cannot; builds the tokenizer on the meta device, for its parameters."""
    tokenizer = on_meta(recipe)
    losses = [check("losses", node, DERIVED["losses"]) for node in phase.losses.values()]
    try:
        check_balance(tokenizer, phase, {term for loss, _ in losses if loss.of_pixels for term in loss.terms})
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
