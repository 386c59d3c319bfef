"""Whether the trackers that a recipe names are known to Accelerate, and installed."""

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType

from pipeline.recipes.schema import Recipe
from pipeline.validation import at, check_known


def check_trackers(recipe: Recipe) -> None:
    """ValueError where there is no such tracker, or its package is missing."""
    missing = set(map(str, LoggerType)) - set(map(str, get_available_trackers()))
    with at("trackers"):
        for name in recipe.trackers:
            check_known(name, map(str, LOGGER_TYPE_TO_CLASS), "tracker")
            if name in missing:
                raise ValueError(f"{name} is not installed; type: pip install {name}, or leave it out")
