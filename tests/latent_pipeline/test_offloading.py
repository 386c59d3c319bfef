"""Every model computes the same with its weights offloaded, kept in a smaller type, or read from disk."""

import math

import pytest
import test_matrix as matrix
import torch
from contracts import captions_for, derived_of
from support.offloading import WAYS
from support.tiny_pipeline import generators, randomised
from torch import Tensor
from torch.nn import MultiheadAttention

from pipeline import LatentPipeline
from pipeline.code import Code
from pipeline.components import build, find
from pipeline.recipes.building import build_network

stock = matrix.stock
TOKENIZERS = {
    (node["kind"], node.get("head"), node.get("bottleneck", {}).get("kind")): name
    for name, node in matrix.TOKENIZERS.items()
}.values()
MODELS = {node["kind"] + str(node.get("modulated")): name for name, node in matrix.NETWORKS.items()}.values()
GENERATORS = [
    (network, objective)
    for network, objective in matrix.GENERATORS
    if network in MODELS
    and find("networks", matrix.NETWORKS[network]["kind"]).role == find("objectives", objective).role
]
SLOW = pytest.mark.slow
SELDOM = ("blocks", "leaves")  # tokenizers are offloaded in these ways by the quick tests
TORCHS_OWN = "torch's MultiheadAttention, in SigLIP's head, reads the weights of a layer that it does not call"


@pytest.fixture(params=sorted(TOKENIZERS))
def tokenizer(request, stock):
    """One of every kind with every bottleneck it is published with, its weights drawn; and the size of its images."""
    node, size, _ = matrix.tried(request.param, stock)
    return build("tokenizers", node, **derived_of(node, size)).eval(), size


@torch.no_grad()
@pytest.mark.parametrize("way", [pytest.param("sequential", marks=SLOW), pytest.param("blocks", marks=SLOW), "leaves"])
def test_tokenizers_compute_the_same_offloaded(tokenizer, way, tmp_path):
    model, size = tokenizer
    if way != "blocks" and any(isinstance(m, MultiheadAttention) for m in model.modules()):
        pytest.skip(TORCHS_OWN)
    shape = (2, 3, size, size)
    images = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    captions = captions_for(model, 2)
    code, rebuilt = model.encode(images, captions), model(images, captions).images
    made = model.decode(code, captions)
    WAYS[way](model, tmp_path)
    for _ in range(2):
        again = model.encode(images, captions)
        torch.testing.assert_close(again.z, code.z, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.decode(code, captions), made, atol=1e-5, rtol=1e-5)
        if code.ids is not None:
            assert torch.equal(again.ids, code.ids)
            torch.testing.assert_close(model.decode(Code(ids=code.ids), captions), made, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(images, captions).images, rebuilt, atol=1e-5, rtol=1e-5)


def pipeline_of(network: str, objective: str, folder: str) -> LatentPipeline | None:
    """A generator with the first tokenizer whose codes it can model; None where the two do not belong together."""
    for tokenizer in TOKENIZERS:
        recipe = matrix.recipe_of(tokenizer, network, objective, folder)
        node, size, spec = matrix.tried(tokenizer, folder)
        if matrix.fits(recipe, spec):
            law = build("objectives", recipe.generator.objective)
            generator = randomised(build_network(recipe, spec, 3, law), 0)
            model = randomised(build("tokenizers", node, **derived_of(node, size)), 1)
            generator.take_bottleneck(model.neck)
            pipe = LatentPipeline(model, generator, law, sampling={"steps": recipe.sample.steps})
            pipe.set_progress_bar_config(disable=True)
            return pipe
    return None


@pytest.fixture(params=GENERATORS, ids="-".join)
def pipe(request, stock) -> LatentPipeline:
    made = pipeline_of(*request.param, stock)
    return made or pytest.skip("this objective trains another kind of network")


def images_of(pipe: LatentPipeline) -> Tensor:
    return pipe([0, 2], guidance_scale=2.0, generator=generators(1, 2), output_type="pt").images


@pytest.mark.parametrize("way", [*sorted(WAYS.keys() - SELDOM), *(pytest.param(way, marks=SLOW) for way in SELDOM)])
def test_pipelines_make_the_same_images_offloaded(pipe, way, tmp_path):
    expected = images_of(pipe)
    for name in ("network", "tokenizer"):
        WAYS[way](getattr(pipe, name), tmp_path / name)
    for _ in range(2):
        torch.testing.assert_close(images_of(pipe), expected, atol=1e-5, rtol=1e-5)


def test_layers_kept_in_a_smaller_type_are_cast_for_their_computation(pipe):
    expected = images_of(pipe)
    for model in (pipe.network, pipe.tokenizer):
        model.enable_layerwise_casting(torch.bfloat16, torch.float32)
        kept = {parameter.dtype for parameter in model.parameters()}
        assert torch.bfloat16 in kept and model.dtype == torch.float32
    if not pipe.objective.discrete:  # one id that differs is another image
        torch.testing.assert_close(images_of(pipe), expected, atol=0.1, rtol=0)
    assert images_of(pipe).isfinite().all()


@torch.no_grad()
def test_tokenizers_run_with_layers_kept_in_eight_bits(tokenizer):
    model, size = tokenizer
    images = torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)
    captions = captions_for(model, 1)
    expected = model.decode(model.encode(images, captions), captions)
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    made = model.decode(model.encode(images, captions), captions)
    assert made.isfinite().all() and made.shape == expected.shape
