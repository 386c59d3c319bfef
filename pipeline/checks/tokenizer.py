"""Whether a recipe's tokenizer can be built, and every phase can train it."""

import json

from pipeline.checks.equivariance import check_scales
from pipeline.checks.phase import check_phase
from pipeline.components import Node
from pipeline.recipes.building import TokenizerPlan, plan_tokenizer
from pipeline.recipes.equivariance import Equivariance
from pipeline.recipes.schema import Recipe
from pipeline.validation import SettingError, at


def check_tokenizer(recipe: Recipe) -> TokenizerPlan:
    """The plan of the tokenizer, if it and all its phases are right."""
    training, tokenizer = recipe.tokenizer, plan_tokenizer(recipe)
    if not training.phases and not tokenizer.cls.given_weights and training.start is None:
        raise SettingError(
            "tokenizer.phases",
            " is empty, so that nothing trains this tokenizer; add a phase, or name the folder of a trained one:"
            " tokenizer.start=FOLDER",
        )
    if tokenizer.can.frames > 1:
        raise SettingError(
            "tokenizer.model.frames", f" is {tokenizer.can.frames}, and the line reads images; set it to 1"
        )
    for name, phase in training.phases.items():
        with at(f"tokenizer.phases.{name}"):
            check_phase(recipe, phase, tokenizer)
    check_carried_critics(recipe)
    check_transforms(recipe, tokenizer)
    return tokenizer


def check_carried_critics(recipe: Recipe) -> None:
    """ValueError where a phase begins with a critic of an earlier one, and there is none or one of another make."""
    before: Node | None = None
    for name, phase in recipe.tokenizer.phases.items():
        if phase.adversary is None:
            continue
        if phase.adversary.carried and phase.adversary.critic != before:
            there = "no phase before has a critic" if before is None else f"the critic before is {json.dumps(before)}"
            raise SettingError(
                f"tokenizer.phases.{name}.adversary.carried",
                f" is true, but {there}; set it to false, or state the same critic",
            )
        before = phase.adversary.critic


def check_transforms(recipe: Recipe, tokenizer: TokenizerPlan) -> None:
    """ValueError where images or codes that a phase shrinks do not pass through the tokenizer."""
    passed: list[Equivariance] = []
    for name, phase in recipe.tokenizer.phases.items():
        if phase.equivariance and phase.equivariance not in passed:
            with at(f"tokenizer.phases.{name}.equivariance"):
                check_scales(phase.equivariance, tokenizer.module)
            passed.append(phase.equivariance)
