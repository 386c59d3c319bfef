"""`describe [NAME ...]`: what a recipe can state."""

from pipeline.recipes.describing import describe


def describe_names(words: list[str]) -> None:
    """Print every section of a recipe and the kinds of every slot, a line each.

    With names of sections (generator.loop) or kinds (titok): all settings of these, with types, defaults and meaning.
    """
    print("\n\n".join(map(describe, words)) if words else describe())
