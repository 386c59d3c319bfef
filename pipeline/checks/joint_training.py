"""Whether a recipe's tokenizer and generator can be trained together."""

from collections.abc import Iterable

from pipeline.bottlenecks.base import CodebookQuantizer
from pipeline.checks.phase import check_phase
from pipeline.components import build, find
from pipeline.networks.base import Network
from pipeline.objectives.base import Objective
from pipeline.recipes.building import TokenizerPlan
from pipeline.recipes.joint_training import JointTraining
from pipeline.recipes.schema import Recipe
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.base import Tokenizer
from pipeline.validation import SettingError, at, check_names


def check_joint_training(recipe: Recipe, tokenizer: TokenizerPlan) -> None:
    """ValueError where nothing would reach the tokenizer through the generator, or a term would come twice."""
    joint = recipe.joint
    if joint is None:
        return
    with at("joint"):
        losses = [find("losses", node["kind"]) for node in recipe.generator.losses.values()]
        if joint.soft is not None:
            objective = build("objectives", recipe.generator.objective)
            network = find("networks", recipe.generator.network["kind"])
            check_soft_codes(joint, objective, network, tokenizer.module, bool(losses))
        else:
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


def check_soft_codes(
    joint: JointTraining,
    objective: Objective,
    network: Network | type[Network],
    tokenizer: Tokenizer,
    has_losses: bool,
) -> None:
    """ValueError unless the generator can read mixtures of the tokenizer's codes, and each term has one weight."""
    neck = tokenizer.neck
    if not objective.discrete or not isinstance(neck, CodebookQuantizer):
        raise SettingError(
            "soft",
            f" mixes the codes of a codebook, and a {type(neck).__name__} has none that are compared by distance; take"
            " the bottleneck vector_quantize, or leave soft out",
        )
    if not network.reads_mixtures:
        name = (network if isinstance(network, type) else type(network)).__name__
        raise SettingError("soft", f": a {name} reads no mixtures of codes; take causal_transformer, or leave soft out")
    if has_losses:
        raise SettingError("soft", " and generator.losses: networks of ids have no such losses; leave one of them out")
    with at("alignment"):
        check_names(joint.alignment, objective.terms, "term of the objective")
