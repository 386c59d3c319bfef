"""The one check before the first stage: a recipe, the images of both splits, and what it starts from and publishes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.checks.images import check_images, numbers_left_out
from pipeline.checks.machine import memory_lacking
from pipeline.checks.nodes import named_models
from pipeline.checks.publication import check_publication
from pipeline.checks.recipe import CheckedRecipe
from pipeline.checks.starting_weights import check_folder, check_network_start, check_start
from pipeline.checks.transplant import check_codes_before
from pipeline.checks.weights import describe_weights
from pipeline.code import LatentSpec
from pipeline.components import find
from pipeline.images.facts import SplitFacts
from pipeline.networks.base import Network
from pipeline.recipes.building import build_network, build_tokenizer_on_meta
from pipeline.recipes.schema import Recipe
from pipeline.sampling.weak_network import check_weak_shape
from pipeline.tokenizers.base import Tokenizer
from pipeline.validation import NotHere

CLASSES = 1000  # of a network whose images are not on this machine


@dataclass(frozen=True)
class CheckedLine:
    """What a line that is right comes to on this machine."""

    tokenizer: Tokenizer | None  # on the meta device; None where it is frozen, or its sizes are not known here
    network: Network | None  # on the meta device; None where there is no generator
    weights: list[str]  # a line for each frozen network, and for first weights: which ones, and where from
    left_out: list[str]  # a line for each number, or folder, that will not be there
    warnings: list[str]  # a line for each training that this machine may be too small for


def check_line(recipe: Recipe, checked: CheckedRecipe, facts: Mapping[str, SplitFacts]) -> CheckedLine:
    """ValueError with one line for what else can be known to be wrong with a `checked` recipe before the first step.

    `facts` are those of both splits; they are empty where the images are not on this machine.
    """
    if facts:
        check_images(recipe, facts)
    network = None
    if checked.generator is not None:
        with torch.device("meta"):
            classes = count_classes(recipe, facts)
            network = build_network(recipe, checked.spec, classes, checked.generator.objective)
    tokenizer = build_trained_tokenizer(recipe, checked)
    if facts:
        check_starts(recipe, checked.spec, tokenizer, network)
    refusals = check_publication(recipe, tokenizer, network)
    left_out = [f"publish.stock leaves out one part: {refusal}" for refusal in refusals]
    if facts:
        left_out += [f"evaluate leaves out {line}" for line in numbers_left_out(recipe, facts, checked.spec)]
    return CheckedLine(tokenizer, network, describe_weights(recipe), left_out, memory_lacking(tokenizer, network))


def build_trained_tokenizer(recipe: Recipe, checked: CheckedRecipe) -> Tokenizer | None:
    """The tokenizer without weights; None where nothing trains given ones, or it is still to be fetched."""
    if checked.tokenizer.given_weights and not recipe.tokenizer.phases:
        return None
    try:
        return build_tokenizer_on_meta(recipe)
    except NotHere:
        return None


def count_classes(recipe: Recipe, facts: Mapping[str, SplitFacts]) -> int:
    """How many classes condition the generator, `CLASSES` where the images are not on this machine."""
    if not recipe.conditional:
        return 0
    return len(facts["train"].class_names) if facts else CLASSES


def check_starts(recipe: Recipe, spec: LatentSpec, tokenizer: Tokenizer | None, network: Network | None) -> None:
    """ValueError where a folder that a stage begins with, or is guided by, does not fit.

    Those that are not there are told by `pipeline.checks.weights`.
    """
    weak, joint = recipe.sample.weak, recipe.joint
    here = {place: model.given for place, model in named_models(recipe) if not model.missing}
    if "tokenizer.start" in here and tokenizer is not None:
        check_start(tokenizer, here["tokenizer.start"], "tokenizer.start")
    if "generator.start" in here:
        check_network_start(network, recipe.generator.start)
        check_codes_before(recipe, spec)
    if "joint.critic" in here and joint.phase.adversary is not None:
        critic = find("critics", joint.phase.adversary.critic["kind"])
        check_folder(critic.__name__, Path(here["joint.critic"]), "joint.critic")
    if weak is not None and weak.folder is not None:
        check_weak_shape(Path(weak.folder), network)
