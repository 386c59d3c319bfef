"""`recipes`: the recipes there are."""

from pipeline.recipes.files import catalogue


def list_recipes(words: list[str]) -> None:
    """Print the name of every recipe and what it is for."""
    print(catalogue())
