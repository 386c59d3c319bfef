"""`check RECIPE`: everything that can be said of a recipe before it is trained."""

from pipeline.checks.summary import print_check
from pipeline.recipes.schema import load


def check(words: list[str]) -> None:
    """Check a recipe whole, and print parameters, latent shape, memory, disk and the output folder.

    Nothing is written or trained. Any value of the recipe can be changed: generator.loop.steps=2000.
    """
    print_check(load(words[0], words[1:]))
