"""Any tokenizer with any generator: each pair of fragments trains and samples at tiny size, or is refused in a line."""

import json
import math
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import CAPTIONS, captions_for, derived_of, fragments, size_for, spec_of
from diffusers import AutoencoderKL

from pipeline import LatentPipeline
from pipeline.checks.recipe import check_recipe
from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import build, constructor_parameters, find, kinds, structure
from pipeline.draws import ImageDraws, StepDraws
from pipeline.recipes.building import build_network
from pipeline.recipes.files import CONFIGS, merge
from pipeline.recipes.schema import Recipe
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.original import Original
from pipeline.samplers.request import SamplingRequest
from pipeline.tokenizers.base import Tokenizer
from pipeline.training.generation import Generation

OBJECTIVES: dict[str, dict[str, Any]] = {"random_order": {"anneal_start": 1, "anneal_end": 2}}  # what has no default
ENCODER = {"kind": "byte_transformer", "tokens": 5, "width": 6, "depth": 1, "heads": 2, "layers": [0, 1]}  # CAPTIONS
STEPS = {"denoiser": 2, "causal": None, "masked": 2, "masked_latent": 2, "bit_denoiser": 2, "levels": None}


def distinct(nodes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The first of all tokenizers of one kind whose codes have one geometry, which is all that a generator sees."""
    found: dict[Any, str] = {}
    for name, node in nodes.items():
        found.setdefault((node["kind"], "path" in node or spec_of(node, size_for(node))), name)
    return {name: nodes[name] for name in found.values()}


def differing(nodes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The first of all networks that have the same switches on, however much (depth, dropout) each has of them."""
    found: dict[str, str] = {}
    for name, node in nodes.items():
        switches = {key: bool(value) if isinstance(value, float | int) else value for key, value in node.items()}
        found.setdefault(json.dumps(switches, sort_keys=True), name)
    return {name: nodes[name] for name in found.values()}


TOKENIZERS, NETWORKS = distinct(fragments("tokenizers")), differing(fragments("networks"))
ALL = [(network, objective) for network, objective in product(NETWORKS, kinds("objectives"))]


def is_trained_by(network: str, objective: str) -> bool:
    return find("networks", NETWORKS[network]["kind"]).role == find("objectives", objective).role


GENERATORS = [pair for pair in ALL if is_trained_by(*pair)]


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> str:
    """A folder that stands for the hub's SD-VAE."""
    folder = tmp_path_factory.mktemp("stock")
    AutoencoderKL(latent_channels=4, block_out_channels=(8,) * 4, norm_num_groups=4).save_pretrained(folder)
    return str(folder)


@cache
def tried(tokenizer: str, stock: str) -> tuple[dict[str, Any], int, LatentSpec]:
    """A tokenizer's node, the size of the images that it is tried on, and the codes it gives of them."""
    node = TOKENIZERS[tokenizer]
    node = {"kind": node["kind"], "path": stock} if "path" in node else node
    size = size_for(node)
    return node, size, spec_of(node, size)


@cache
def encoded(tokenizer: str, stock: str) -> tuple[Tokenizer, Code]:
    """A tokenizer, and its code of two images, which all generators are tried on."""
    node, size, _ = tried(tokenizer, stock)
    model = build("tokenizers", node, **derived_of(node, size)).eval()
    shape = (2, 3, size, size)
    with torch.no_grad():
        return model, model.encode(torch.linspace(-1, 1, math.prod(shape)).reshape(shape), captions_for(model, 2))


def recipe_of(tokenizer: str, network: str, objective: str, stock: str) -> Recipe:
    model, size, _ = tried(tokenizer, stock)
    node = {"kind": objective} | OBJECTIVES.get(objective, {})
    if objective == "gaussian_diffusion":
        node["variance"] = "learned_range"
    terms = build("objectives", node).terms
    generator = {
        "network": NETWORKS[network],
        "objective": node,
        "weights": dict.fromkeys(terms, 1.0),
        "loop": {"steps": 1, "lr": {"network": 1e-3}},
    }
    values = {
        "name": "pair",
        "data": {"source": {"kind": "shapes"}, "size": size},
        "tokenizer": {"model": model, "start": "anywhere"},
        "generator": generator,
    }
    if set(derived_of(model, size)) & set(CAPTIONS):
        values["text"] = {"encoder": ENCODER}
    role = find("objectives", objective).role
    return structure(Recipe, merge(values, {"sample": {"steps": STEPS[role], "guidance": 2.0}}))


def fits(recipe: Recipe, spec: LatentSpec) -> bool:
    """What LatentSpec allows: ids for a generator of ids, and a network of the kind that the objective trains."""
    objective = find("objectives", recipe.generator.objective["kind"])
    network = find("networks", recipe.generator.network["kind"])
    told = recipe.generator.network.get("target_positions", False)
    lacks = objective.__name__ == "RandomOrder" and not told
    lacks |= "Bit" in network.__name__ and spec.vocab.bit_count() != 1  # its ids are no bits
    lacks |= network.role == "levels" and not spec.levels
    lacks |= bool(network.taken) and list(spec.levels) != sorted(set(spec.levels))  # no maps
    knows_segments = "segments" in constructor_parameters(network)
    lacks |= knows_segments and not spec.segments or objective.__name__ == "NextTokenBySegment" and not knows_segments
    lacks |= spec.ends and (objective.__name__ != "NextToken" or "ends" not in constructor_parameters(network))
    return bool(spec.vocab) == objective.discrete and network.role == objective.role and not lacks


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("network, objective", GENERATORS)
def test_every_pair_trains_and_samples_or_is_refused(tokenizer, network, objective, stock):
    recipe = recipe_of(tokenizer, network, objective, stock)
    if not fits(recipe, tried(tokenizer, stock)[2]):
        with pytest.raises(ValueError) as refusal:
            check_recipe(recipe)
        assert "\n" not in str(refusal.value) and "generator." in str(refusal.value)
        return
    line = check_recipe(recipe)
    model, code = encoded(tokenizer, stock)
    assert (code.z if code.ids is None else code.ids).shape[1] == line.spec.tokens
    generator = build_network(recipe, line.spec, 3, line.generator.objective)
    generator.take_bottleneck(model.neck)
    train_one_step(recipe, generator, line.generator.objective, code)
    pipe = LatentPipeline(model, generator.eval(), line.generator.objective, sampling={"steps": recipe.sample.steps})
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    captions = captions_for(model, 2)
    made = pipe([0, 2], prompt_embeds=captions, guidance_scale=2.0, generator=seeds, output_type="pt").images
    assert made.shape == (2, 3, recipe.data.size, recipe.data.size) and made.isfinite().all()
    seeds, last = seeds[1].manual_seed(2), None if captions is None else captions[1:]
    alone = pipe([2], prompt_embeds=last, guidance_scale=2.0, generator=seeds, output_type="pt").images
    torch.testing.assert_close(made[1:], alone, atol=2e-3, rtol=0)


@pytest.mark.parametrize("network, objective", [pair for pair in ALL if not is_trained_by(*pair)])
def test_a_network_is_refused_by_an_objective_that_trains_others(network, objective, stock):
    """Whatever the codes are; one tokenizer of ids and one of numbers stand for all."""
    for continuous in (False, True):
        tokenizer = next(name for name in TOKENIZERS if bool(tried(name, stock)[2].vocab) != continuous)
        with pytest.raises(ValueError, match="generator[.]") as refusal:
            check_recipe(recipe_of(tokenizer, network, objective, stock))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("objective", kinds("objectives"))
def test_every_objective_keeps_what_lies_outside_of_a_mask(objective, stock):
    """By the first network and the first tokenizer with a map that belong to it."""
    for network, tokenizer in product(NETWORKS, TOKENIZERS):
        recipe, spec = recipe_of(tokenizer, network, objective, stock), tried(tokenizer, stock)[2]
        if fits(recipe, spec) and (len(spec.grid) == 2 or spec.levels or spec.segments) and spec.tokens > 1:
            break
    law, code = build("objectives", recipe.generator.objective), encoded(tokenizer, stock)[1]
    given = Code(ids=torch.randint_like(code.ids, spec.vocab)) if law.discrete else Code(z=code.z)
    kept, draws = torch.arange(spec.tokens).expand(2, -1) < spec.tokens // 2, ImageDraws.from_seeds([1, 2])
    steps, condition = law.steps_for(spec, recipe.sample.steps), Condition(torch.tensor([0, 2]))
    generator = build_network(recipe, spec, 3, law).eval()
    for preserve in (0.0, 0.5):
        request = SamplingRequest(generator, condition, spec, draws, steps, Guidance(2.0))
        made = law.regenerate(request, Original(given, preserve, kept), law.read_settings({}))
        old, new = (part.ids if law.discrete else part.z for part in (given, made))
        assert torch.equal(new[kept], old[kept]) and new.shape == old.shape and (preserve or not torch.equal(new, old))


def train_one_step(recipe: Recipe, network: torch.nn.Module, objective: Any, code: Code) -> None:
    """Forward, backward and a step of the optimiser, after which some weight has moved and all are finite."""

    class Batch:
        std = None

    Batch.code, Batch.condition = code, Condition(torch.tensor([0, 2]))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    task = Generation(network, objective, recipe.generator.weights)
    for _, terms in task.turns(Batch, StepDraws(0, 0, slice(0, 2), 2), 0):
        sum(terms.values()).backward()
    optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, network.parameters())]
    assert any(moved) and all(parameter.isfinite().all() for parameter in network.parameters())


def test_fragments_are_all_here():
    """A fragment that the matrix does not meet is one that nobody has tried."""
    for folder, known in (("tokenizers", TOKENIZERS), ("networks", NETWORKS)):
        names = {path.stem for path in Path(CONFIGS, folder).glob("*.yaml")}
        assert set(known) <= names and known, json.dumps(sorted(names))
    assert {find("networks", node["kind"]).role for node in NETWORKS.values()} == set(STEPS)
    specs = [spec_of(node, size_for(node)) for node in TOKENIZERS.values() if "path" not in node]
    assert {(len(spec.grid), bool(spec.vocab)) for spec in specs} == {(1, True), (1, False), (2, True), (2, False)}
