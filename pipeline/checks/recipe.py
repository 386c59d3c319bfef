"""The check of a whole recipe, part after part of the line."""

from dataclasses import dataclass

from pipeline.checks.evaluation import check_evaluation
from pipeline.checks.generator import check_generator
from pipeline.checks.joint_training import check_joint_training
from pipeline.checks.posttraining import check_posttraining
from pipeline.checks.previews import check_previews
from pipeline.checks.sampling import check_sampling
from pipeline.checks.starting_weights import check_statistics
from pipeline.checks.text import check_text
from pipeline.checks.tokenizer import check_tokenizer
from pipeline.checks.trackers import check_trackers
from pipeline.checks.without_generator import check_without_generator
from pipeline.code import LatentSpec
from pipeline.components import check, find
from pipeline.networks.base import Network
from pipeline.objectives.base import Objective
from pipeline.recipes.building import TokenizerPlan
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.schema import Recipe
from pipeline.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class CheckedGenerator:
    """What the generator of a recipe that is right comes to before any weight is drawn."""

    network: type[Network]
    objective: Objective


@dataclass(frozen=True)
class CheckedRecipe:
    """What a recipe that is right comes to before any weight is drawn."""

    tokenizer: type[Tokenizer]
    spec: LatentSpec  # of its code
    generator: CheckedGenerator | None  # None where the line ends with the tokenizer


def check_recipe(recipe: Recipe) -> CheckedRecipe:
    """Check every section against the components it names; ValueError with one line that says what to change."""
    check("datasets", recipe.data.source, DERIVED["datasets"], "data.source")
    check_text(recipe)
    tokenizer = check_tokenizer(recipe)
    check_statistics(recipe, tokenizer)
    generator = None
    if recipe.generator is None:
        check_without_generator(recipe)
    else:
        generator = check_generation(recipe, tokenizer)
    check_evaluation(recipe)
    check_previews(recipe)
    check_trackers(recipe)
    return CheckedRecipe(tokenizer.cls, tokenizer.spec, generator)


def check_generation(recipe: Recipe, tokenizer: TokenizerPlan) -> CheckedGenerator:
    """Check the generator, and what is trained and sampled with it."""
    objective = check_generator(recipe, tokenizer.spec)
    check_joint_training(recipe, tokenizer)
    check_sampling(recipe, tokenizer.spec, objective)
    check_posttraining(recipe, tokenizer)
    return CheckedGenerator(find("networks", recipe.generator.network["kind"]), objective)
