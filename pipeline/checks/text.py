"""Whether the section `text` of a recipe names an encoder that can be built."""

from pipeline.code import TextSpec
from pipeline.recipes.schema import Recipe


def check_text(recipe: Recipe) -> TextSpec | None:
    """The geometry of captions' features; ValueError with one line where the arguments of the encoder are wrong."""
    return None if recipe.text is None else recipe.text.spec
