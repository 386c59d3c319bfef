"""Whether the parts of a recipe fit together."""

from dataclasses import dataclass

from pipeline.checks.generator import check_generator, check_sampling
from pipeline.checks.phase import check_critic, check_only, check_phase, check_whole_phase
from pipeline.code import LatentSpec
from pipeline.components import check, find
from pipeline.features.choice import check_features
from pipeline.features.statistics_file import check_reference
from pipeline.frozen.alignment_teacher import check_teacher, takes_tap
from pipeline.metrics.base import check_metrics, report_kinds
from pipeline.networks.base import Network
from pipeline.objectives.base import Objective
from pipeline.recipes.building import DERIVED, find_tokenizer, on_meta
from pipeline.recipes.schema import Equivariance, Recipe
from pipeline.tokenizers.base import Tokenizer
from pipeline.training.equivariance import check_passage
from pipeline.validation import at, check_names


@dataclass(frozen=True)
class Line:
    """What a recipe comes to before anything is built."""

    tokenizer: type[Tokenizer]
    spec: LatentSpec
    network: type[Network]
    objective: Objective


def check_line(recipe: Recipe) -> Line:
    """Check every section against the components it names; ValueError with one line that says what to change."""
    check("datasets", recipe.data.source, DERIVED["datasets"], "data.source")
    tokenizer, spec = check_tokenizer(recipe)
    objective = check_generator(recipe, spec)
    check_joint_training(recipe)
    check_sampling(recipe, spec, objective)
    check_posttraining(recipe)
    check_evaluation(recipe)
    return Line(tokenizer, spec, find("networks", recipe.generator.network["kind"]), objective)


def check_tokenizer(recipe: Recipe) -> tuple[type[Tokenizer], LatentSpec]:
    part = recipe.tokenizer
    cls, arguments = find_tokenizer(recipe)
    spec = cls.geometry(arguments)
    for name, phase in part.phases.items():
        check_whole_phase(recipe, phase, f"tokenizer.phases.{name}")
    check_passages(recipe)
    if not part.phases and not cls.frozen and part.start is None:
        raise ValueError(
            "tokenizer.phases is empty: a tokenizer of our own needs a phase that trains it, or tokenizer.start=FOLDER"
        )
    return cls, spec


def check_passages(recipe: Recipe) -> None:
    """ValueError where transformed codes or images do not pass; builds the tokenizer on the meta device for that."""
    phases = {name: phase.equivariance for name, phase in recipe.tokenizer.phases.items() if phase.equivariance}
    tokenizer = on_meta(recipe) if phases else None
    passed: list[Equivariance] = []
    for name, part in phases.items():
        if part not in passed:
            try:
                check_passage(part, tokenizer)
            except ValueError as error:
                raise ValueError(f"tokenizer.phases.{name}.equivariance: {error}") from None
            passed.append(part)


def check_joint_training(recipe: Recipe) -> None:
    """ValueError where nothing would reach the tokenizer by way of the generator, or a term would come twice."""
    if recipe.joint is None:
        return
    phase, nodes = recipe.joint.phase, recipe.generator.losses.values()
    if not nodes:
        raise ValueError(
            "joint trains the tokenizer by generator.losses, and there are none; state one, for example"
            " alignment: {kind: feature_cosine, block: 8}"
        )
    if phase.train == "decoder":
        raise ValueError("joint.phase.train is decoder, and so codes stay what they are; set train: all, or encoder")
    if phase.equivariance:
        raise ValueError("joint.phase.equivariance: the generator has codes of one size alone; leave it out")
    check_whole_phase(recipe, phase, "joint.phase", others=["network"])
    terms = {term for node in nodes for term in find("losses", node["kind"]).terms}
    with at("joint.alignment"):
        check_names(recipe.joint.alignment, terms, "term of generator.losses")
    if twice := sorted(terms & set(phase.weights)):
        raise ValueError(f"joint.phase.losses gives {twice[0]!r}, which generator.losses gives too; leave one out")


def check_posttraining(recipe: Recipe) -> None:
    """ValueError where post-training trains more than a decoder, or by losses that need more than its images."""
    if recipe.posttrain is None:
        return
    phase, where = recipe.posttrain.phase, "posttrain.phase"
    if phase.train != "decoder":
        raise ValueError(f"{where}.train is {phase.train!r}, but codes must stay what they are; set train: decoder")
    if phase.balance:
        raise ValueError(
            f"{where}.balance is of terms that are not of pixels, and a decoder makes nothing else; leave it out"
        )
    if phase.equivariance:
        raise ValueError(f"{where}.equivariance transforms codes that are encoded, not those given here; leave it out")
    if not phase.losses:
        raise ValueError(f"{where}.losses is empty, and so held-out pairs have no error; name one, for example pixel")
    for name, node in phase.losses.items():
        loss, _ = check("losses", node, DERIVED["losses"], f"{where}.losses.{name}")
        if not loss.of_pixels:
            raise ValueError(f"{where}.losses.{name} is not of pixels, which are all a decoder makes; leave it out")
        if takes_tap(node):
            check_teacher(node, recipe.weights, recipe.data.size, f"{where}.losses.{name}")
    check_phase(phase, *find_tokenizer(recipe), where, from_codes=True)
    check_critic(recipe, phase, where)
    if phase.only:
        check_only(recipe, phase, where)


def check_evaluation(recipe: Recipe) -> None:
    """ValueError where there is no such metric, or features, their weights or the reference are not on this machine."""
    check_metrics(recipe.evaluate.metrics, report_kinds(), "evaluate.metrics")
    check_features(recipe.evaluate.features, recipe.weights)
    check_reference(recipe.evaluate.reference, recipe.evaluate.features)
