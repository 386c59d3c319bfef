"""The check of a whole recipe, part after part of the line."""

from dataclasses import dataclass

from pipeline.checks.evaluation import check_evaluation
from pipeline.checks.generator import check_generator
from pipeline.checks.joint_training import check_joint_training
from pipeline.checks.posttraining import check_posttraining
from pipeline.checks.sampling import check_sampling
from pipeline.checks.starting_weights import check_statistics
from pipeline.checks.tokenizer import check_tokenizer
from pipeline.code import LatentSpec
from pipeline.components import check, find
from pipeline.networks.base import Network
from pipeline.objectives.base import Objective
from pipeline.recipes.building import DERIVED
from pipeline.recipes.schema import Recipe
from pipeline.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class CheckedRecipe:
    """What a recipe that is right comes to before any weight is drawn."""

    tokenizer: type[Tokenizer]
    spec: LatentSpec  # of its code
    network: type[Network]
    objective: Objective


def check_recipe(recipe: Recipe) -> CheckedRecipe:
    """Check every section against the components it names; ValueError with one line that says what to change."""
    check("datasets", recipe.data.source, DERIVED["datasets"], "data.source")
    tokenizer = check_tokenizer(recipe)
    check_statistics(recipe, tokenizer)
    objective = check_generator(recipe, tokenizer.spec)
    check_joint_training(recipe, tokenizer)
    check_sampling(recipe, tokenizer.spec, objective)
    check_posttraining(recipe, tokenizer)
    check_evaluation(recipe)
    network = find("networks", recipe.generator.network["kind"])
    return CheckedRecipe(tokenizer.cls, tokenizer.spec, network, objective)
