"""`check RECIPE`: everything that can be said of a recipe before it is trained."""

from dataclasses import fields

from pipeline.components import structure
from pipeline.planning.summary import CheckSettings, print_check
from pipeline.recipes.files import parse_settings
from pipeline.recipes.schema import load


def check(words: list[str]) -> None:
    """Check a recipe whole, and print parameters, latent shape, memory, disk, time and the output folder.

    Activations are measured without computing anything, for as many processes as are asked for: processes=8. Nothing is
    written or trained. Any value of the recipe can be changed: generator.loop.steps=2000.
    """
    names = {f.name for f in fields(CheckSettings)}
    own = [word for word in words[1:] if word.partition("=")[0] in names]
    settings = structure(CheckSettings, parse_settings(own))
    print_check(load(words[0], [word for word in words[1:] if word not in own]), settings)
