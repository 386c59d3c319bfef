"""The tokenizer as its training begins: built anew, with the weights that are given for it."""

from pipeline.components import find
from pipeline.recipes.building import build_tokenizer, seed_initial_weights
from pipeline.recipes.schema import Recipe
from pipeline.tokenizers.base import Tokenizer
from pipeline.training.starting_weights import load_start


def build_starting_tokenizer(recipe: Recipe) -> Tokenizer:
    """Its weights are those of `tokenizer.start` or of its own origin, else drawn by the recipe's seed."""
    seed_initial_weights(recipe.seed)
    return load_start(build_tokenizer(recipe), recipe.tokenizer.start, "tokenizer.start")


def is_finetuned(recipe: Recipe) -> bool:
    """Whether phases train a tokenizer that had trained weights before."""
    training = recipe.tokenizer
    given = training.start is not None or find("tokenizers", training.model["kind"]).given_weights
    return given and bool(training.phases)
