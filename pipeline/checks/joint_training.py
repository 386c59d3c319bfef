"""Whether a recipe's tokenizer and generator can be trained together."""

from collections.abc import Iterable

from pipeline.checks.phase import check_phase
from pipeline.components import find
from pipeline.recipes.building import TokenizerPlan
from pipeline.recipes.schema import Recipe
from pipeline.recipes.tokenizer_training import Phase
from pipeline.validation import SettingError, at, check_names


def check_joint_training(recipe: Recipe, tokenizer: TokenizerPlan) -> None:
    """ValueError where nothing would reach the tokenizer through the generator, or a term would come twice."""
    joint = recipe.joint
    if joint is None:
        return
    with at("joint"):
        losses = [find("losses", node["kind"]) for node in recipe.generator.losses.values()]
        check_alignment(joint.alignment, joint.phase, [term for loss in losses for term in loss.terms])
        with at("phase"):
            if joint.phase.train == "decoder":
                raise SettingError("train", " is decoder, which leaves codes as they are; set train=all, or encoder")
            if joint.phase.equivariance:
                raise SettingError("equivariance", ": the generator reads codes of one size alone; leave it out")
            check_phase(recipe, joint.phase, tokenizer, other_players=["network"])


def check_alignment(alignment: dict[str, float], phase: Phase, terms: Iterable[str]) -> None:
    """ValueError unless `alignment` weighs exactly the terms of generator.losses, which the phase has not besides."""
    terms = set(terms)
    if not terms:
        raise SettingError(
            "alignment",
            ": the tokenizer is trained by generator.losses, and there are none; add one, for example"
            " generator.losses.alignment={kind: feature_cosine, block: 8}",
        )
    with at("alignment"):
        check_names(alignment, terms, "term of generator.losses")
    if repeated := sorted(terms & set(phase.weights)):
        raise SettingError("phase.losses", f" and generator.losses both give {repeated[0]!r}; leave one of them out")
