"""Whether the previews and early stops of a recipe's trainings have something to look at."""

from collections.abc import Mapping

from pipeline.checks.accumulation import trainings
from pipeline.images.facts import SplitFacts
from pipeline.recipes.schema import Recipe
from pipeline.runs.training_folders import training_folders
from pipeline.validation import SettingError

POSTTRAINING = "posttrain.phase.loop"


def check_previews(recipe: Recipe) -> None:
    """ValueError with one line for a training that cannot stop early, or has no held-out pairs to look at."""
    posttrain, generator = recipe.posttrain, recipe.generator
    if posttrain is not None and posttrain.phase.loop.early_stop is not None:
        raise SettingError(
            f"{POSTTRAINING}.early_stop", ": post-training ends by posttrain.keep and posttrain.patience; leave it out"
        )
    if posttrain is not None and posttrain.phase.loop.preview_every and not posttrain.held_out:
        raise SettingError(
            f"{POSTTRAINING}.preview_every", " looks at held-out pairs, and posttrain.held_out is 0; hold some out"
        )
    if generator is not None and generator.milestones and generator.loop.early_stop is not None:
        raise SettingError(
            "generator.loop.early_stop", " may end before a step of generator.milestones; leave one of them out"
        )


def check_held_out_images(recipe: Recipe, facts: Mapping[str, SplitFacts]) -> None:
    """ValueError where held-out images are to be looked at, and none are held out."""
    for place, loop, _ in trainings(recipe):
        asked = "early_stop" if loop.early_stop is not None else "preview_every" if loop.preview_every else None
        if asked and place != POSTTRAINING and not facts["held_out"].images:
            raise SettingError(
                f"{place}.{asked}", " looks at held-out images, and none is held out; set data.source.held_out=0.1"
            )


def stops_early(recipe: Recipe, artefact: str) -> bool:
    """Whether a training that makes this artefact ends by its held-out loss, on which its result then depends."""
    return any(one.loop.early_stop is not None for one in training_folders(recipe) if one.artefact == artefact)
