"""A generator whose hidden states are aligned: what the teacher sees, how heads are trained, and what is refused."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pipeline.checks.recipe import check_recipe
from pipeline.checks.weights import check_weights
from pipeline.code import Code, Condition
from pipeline.components import build
from pipeline.draws import StepDraws
from pipeline.frozen.feature_maps import stored_features
from pipeline.images.reading import Images
from pipeline.latents.code_source import CodeBatch
from pipeline.latents.encoding import EncodingPlan, encode
from pipeline.latents.store import LatentStore
from pipeline.losses.base import Alignment
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.recipes.building import build_tokenizer, hidden_layout
from pipeline.recipes.latents import Latents
from pipeline.recipes.schema import load
from pipeline.teachers.base import Tap
from pipeline.teachers.classifier import Classifier
from pipeline.training.codes_and_images import CodesAndImages
from pipeline.training.generation import Generation
from pipeline.training.loss_heads import detach_heads
from pipeline.training.phase_parts import build_generator_losses

LOSS = "generator.losses.alignment"


def network_of(depth: int = 3) -> DiffusionTransformer:
    torch.manual_seed(0)
    network = DiffusionTransformer([4, 4], 8, 10, depth=depth, width=16, heads=2, patch_size=2)
    for parameter in network.parameters():  # gates begin at zero, where blocks below have no gradient from the flow
        nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    return network


def tap() -> Tap:
    torch.manual_seed(1)
    return Tap(Classifier(num_classes=3, width=8))


def losses_of(kind: str = "feature_cosine", source: Tap | None = None, block: int = 2) -> dict[str, Alignment]:
    torch.manual_seed(2)
    node = {"kind": kind, "block": block} | ({"head": {"hidden": 8}} if kind == "feature_cosine" else {})
    return {kind: build("losses", node, extractor=source or tap(), dim=16, grid=[2, 2])}


def batch() -> CodeBatch:
    draw = torch.Generator().manual_seed(3)
    z, images = torch.randn(4, 16, 8, generator=draw), torch.rand(4, 3, 16, 16, generator=draw) * 2 - 1
    return CodeBatch(Code(z), None, Condition(torch.tensor([1, 4, 2, 0])), images=images)


def terms_of(task: Generation, of: CodeBatch) -> dict:
    ((_, terms),) = task.turns(of, StepDraws(0, 0, slice(0, 4), 4), 0)
    return terms


@pytest.mark.parametrize("kind", ["feature_cosine", "relational", "gram"])
def test_the_term_trains_the_head_and_the_blocks_below_and_leaves_the_flow_as_it_is(kind):
    weights = {"flow": 1.0, kind: 0.5}
    network, losses = network_of(), losses_of(kind)
    task = Generation(network, FlowMatching(), weights, losses)
    terms = terms_of(task, batch())
    plain = terms_of(Generation(network, FlowMatching(), {"flow": 1.0}), batch())
    assert torch.equal(terms["flow"], plain["flow"]) and set(terms) == {"flow", kind}
    terms[kind].backward()
    touched = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name.split(".")[1] for name in touched if name.startswith("blocks")} == {"0", "1"}
    model, heads = detach_heads(task.players["network"])
    assert model is network and not [name for name in model.state_dict() if "head." in name and "layers" in name]
    assert (kind in heads) == (kind != "gram")
    for head in heads.values():
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    assert all(p.grad is None for p in losses[kind].tap.parameters()) and "classifier" in next(iter(task.metrics))


def test_where_hidden_states_lie_is_known_without_weights():
    assert hidden_layout(network_of(), 2) == ([2, 2], 16)
    with pytest.raises(ValueError, match="no block 4 to tap; the network has blocks 1 to 3"):
        hidden_layout(network_of(), 4)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Codes of the digits with mirrors, and beside them the features of a teacher."""
    recipe, folder = load("digits"), tmp_path_factory.mktemp("store")
    torch.manual_seed(0)
    tokenizer, images = build_tokenizer(recipe), Images(recipe.data, "train")
    latents = Latents(posterior="mode", flip=True, precision="fp32", features=True)
    taps = {"feature_cosine": (tap(), [2, 2])}
    encode(tokenizer, images, EncodingPlan(latents, 0, "fp32", taps), folder, Accelerator(cpu=True))
    return folder


def test_stored_features_are_what_the_teacher_sees_of_the_images_that_are_read_with_the_codes(store):
    images = Images(load("digits").data, "train")
    codes, both = LatentStore(store), CodesAndImages(LatentStore(store), images)
    indices, seeds = torch.arange(12), torch.arange(100, 112)
    seen = both.batch(indices, seeds)
    views = codes.chosen(seeds)
    assert set(views.tolist()) == {0, 1} and torch.equal(seen.code.z, codes.batch(indices, seeds).code.z)
    for i, view in enumerate(views.tolist()):
        plain = images.plain(indices[i : i + 1], flip=bool(view)).images
        assert torch.equal(seen.images[i : i + 1], plain)
    torch.testing.assert_close(seen.features["feature_cosine"], tap()(seen.images, [2, 2]), atol=1e-5, rtol=1e-4)
    moved = seen.to(torch.float64)
    assert moved.features["feature_cosine"].dtype == moved.images.dtype == torch.float64
    described = codes.manifest["features"]["feature_cosine"]
    assert described["teacher"] == "classifier" and described["grid"] == [2, 2]
    codes.verify()


def test_a_teacher_whose_features_are_stored_is_not_run(store):
    described = LatentStore(store).manifest["features"]["feature_cosine"]
    given, weights = stored_features(described), {"flow": 1.0, "feature_cosine": 0.5}
    read = CodesAndImages(LatentStore(store), Images(load("digits").data, "train"))
    of = read.batch(torch.arange(4), torch.arange(4))
    with_images = CodeBatch(of.code, None, of.condition, images=of.images)
    from_store = CodeBatch(of.code, None, of.condition, features=of.features)
    terms = [
        terms_of(Generation(network_of(), FlowMatching(), weights, losses_of(source=source)), part)["feature_cosine"]
        for source, part in ((tap(), with_images), (given, from_store))
    ]
    torch.testing.assert_close(*terms)
    with pytest.raises(ValueError, match="classifier features are stored; it reads no images"):
        given(of.images, [2, 2])


def test_heads_are_a_function_of_the_seed():
    recipe = load("digits_repa")
    torch.manual_seed(5)
    network = DiffusionTransformer([4, 4], 8, 10, depth=3, width=16, heads=2, patch_size=2)
    taps = {"feature_cosine": tap()}
    one, again, other = (
        build_generator_losses(recipe, taps, network, seed)["feature_cosine"].head.layers[0].weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_losses_that_a_generator_cannot_have_are_refused_in_one_line():
    check_recipe(load("digits_repa", ["latents.features=true"]))
    for recipe, settings, words in (
        ("digits_repa", [f"{LOSS}.block=9"], f"^{LOSS}: there is no block 9 to tap; the network has blocks 1 to 4"),
        ("digits_repa", [f"{LOSS}.block=null"], f"^{LOSS}: a generator's losses compare the hidden states"),
        ("digits_repa", [f"{LOSS}.source=noised"], f"^{LOSS}: hidden states are compared as they are"),
        ("digits_repa", ["generator.losses.pixel.kind=pixel"], "^generator.losses.pixel: a generator's losses compare"),
        ("digits_repa", ["generator.weights.feature_cosine=null"], "generator.weights.feature_cosine is missing"),
        ("digits_repa", [f"{LOSS}.teacher=dinov2_large"], "weights dinov2_large are not on this machine"),
        ("digits", ["latents.features=true"], "generator.losses is empty, but latents.features is true"),
        (
            "digits_vq_ar",
            [f"{LOSS}.kind=gram", f"{LOSS}.block=1"],
            "CausalTransformer does not show its hidden states",
        ),
        ("digits_titok_dit", [f"{LOSS}.kind=gram", f"{LOSS}.block=1"], r"tokens on a grid of \[\d+\] have none"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            check_recipe(load(recipe, settings))
            check_weights(load(recipe, settings))
        assert "\n" not in str(error.value)
