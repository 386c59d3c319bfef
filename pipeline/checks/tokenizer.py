"""Whether a recipe's tokenizer can be built, and every phase can train it."""

from pipeline.checks.equivariance import check_scales
from pipeline.checks.phase import check_phase
from pipeline.recipes.building import TokenizerPlan, plan_tokenizer
from pipeline.recipes.schema import Equivariance, Recipe
from pipeline.validation import SettingError, at


def check_tokenizer(recipe: Recipe) -> TokenizerPlan:
    """The plan of the tokenizer, if it and all its phases are right."""
    training, tokenizer = recipe.tokenizer, plan_tokenizer(recipe)
    if not training.phases and not tokenizer.cls.frozen and training.start is None:
        raise SettingError(
            "tokenizer.phases",
            " is empty, so that nothing trains this tokenizer; add a phase, or name the folder of a trained one:"
            " tokenizer.start=FOLDER",
        )
    for name, phase in training.phases.items():
        with at(f"tokenizer.phases.{name}"):
            check_phase(recipe, phase, tokenizer)
    check_transforms(recipe, tokenizer)
    return tokenizer


def check_transforms(recipe: Recipe, tokenizer: TokenizerPlan) -> None:
    """ValueError where images or codes that a phase shrinks do not pass through the tokenizer."""
    passed: list[Equivariance] = []
    for name, phase in recipe.tokenizer.phases.items():
        if phase.equivariance and phase.equivariance not in passed:
            with at(f"tokenizer.phases.{name}.equivariance"):
                check_scales(phase.equivariance, tokenizer.module)
            passed.append(phase.equivariance)
