"""Whether a recipe's decoder can be trained again on what the generator makes."""

from pipeline.checks.phase import check_phase
from pipeline.recipes.building import TokenizerPlan
from pipeline.recipes.post_training import PostTraining
from pipeline.recipes.schema import Recipe
from pipeline.recipes.tokenizer_training import Phase
from pipeline.validation import SettingError, at


def check_posttraining(recipe: Recipe, tokenizer: TokenizerPlan) -> None:
    """ValueError where post-training trains more than a decoder, or a setting is out of range."""
    posttrain = recipe.posttrain
    if posttrain is None:
        return
    with at("posttrain"):
        check_pairs(posttrain, bool(recipe.latents.crops))
        if posttrain.rehearsal and not recipe.latents.store:
            raise SettingError("rehearsal", " takes stored codes, and latents.store=false; set rehearsal=0")
        check_choice(posttrain)
        with at("phase"):
            check_decoder_phase(posttrain.phase)
            check_phase(recipe, posttrain.phase, tokenizer, from_codes=True)


def check_pairs(posttrain: PostTraining, crops: bool) -> None:
    """ValueError where pairs cannot be made as stated; `crops` says whether stored codes are of crops."""
    if posttrain.held_out >= posttrain.pairs:
        raise SettingError("held_out", f" is {posttrain.held_out} of {posttrain.pairs} pairs; give fewer")
    if posttrain.rehearsal and posttrain.view == "center" and crops:
        raise SettingError("rehearsal", " takes stored codes, and those are of crops; set view=stored or rehearsal=0")


def check_choice(posttrain: PostTraining) -> None:
    """ValueError where the decoder that is to be kept, or a milestone, cannot be had."""
    if posttrain.keep == "best" and not posttrain.held_out:
        raise SettingError("held_out", " is 0, and their error chooses the decoder; hold some out, or set keep=last")
    steps = posttrain.phase.loop.steps
    for step in posttrain.milestones:
        if step > steps:
            raise SettingError("milestones", f": there is no step {step}; give steps from 1 to {steps}")


def check_decoder_phase(phase: Phase) -> None:
    """ValueError for what cannot be in a phase that starts from codes, and leaves them as they are."""
    if phase.train != "decoder":
        raise SettingError("train", f" is {phase.train!r}, but codes must stay as they are; set train=decoder")
    if phase.balance:
        raise SettingError("balance", " is for terms that are not of pixels, and a decoder has none; leave it out")
    for name in ("equivariance", "perturbation"):
        if getattr(phase, name) is not None:
            raise SettingError(name, " changes codes that are encoded, and here codes are given; leave it out")
    if not phase.losses:
        raise SettingError("losses", " is empty, so held-out pairs have no error; add one, for example pixel")


def check_held_out(posttrain: PostTraining, images: int) -> None:
    """ValueError where all training images are held out, and none is left to train on."""
    if posttrain.held_out >= images:
        raise SettingError(
            "posttrain.held_out",
            f" is {posttrain.held_out}, and there are only {images} training images; hold out fewer",
        )
