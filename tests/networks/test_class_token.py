"""A class token that is noised and denoised with the code: by hand, in training, in sampling, and down a whole line."""

import json
from pathlib import Path

import generating
import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from support.tiny_pipeline import generators, make_network, make_pipeline
from support.vision_folders import HALF
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

import run
from pipeline import LatentPipeline
from pipeline.checks.recipe import check_recipe
from pipeline.checks.weights import check_weights
from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import build, find, kinds
from pipeline.draws import GivenDraws, ImageDraws, StepDraws
from pipeline.frozen.class_token import ClassToken, ClassTokenFeature
from pipeline.frozen.networks import FrozenNetworks
from pipeline.images.reading import Images
from pipeline.latents.code_source import CodeBatch
from pipeline.latents.store import LatentStore
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.nn.class_token import ClassTokenLayers, count_token_rows, join_token, split_token
from pipeline.nn.embeddings import rotary_tables, rotate
from pipeline.nn.feature_head import FeatureHead, HeadShape
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.publishing.self_contained import write_self_contained
from pipeline.recipes.building import build_network, count_parameters, hidden_layout
from pipeline.recipes.schema import Recipe, load
from pipeline.samplers.guidance import Guidance, guided
from pipeline.sampling.many_images import assemble
from pipeline.teachers.base import Tap
from pipeline.teachers.vision_model import VisionModel
from pipeline.training.generation import Generation
from pipeline.training.loss_heads import NetworkWithHeads
from stages import ORDER

WIDTH = 7  # of the token: three rows of three channels, the last with two values that mean nothing
SPEC = LatentSpec((4, 4), 3)
SHORT = [
    "tokenizer.phases.main.loop.steps=2",
    "tokenizer.phases.main.losses.perceptual=null",
    "tokenizer.phases.main.weights.perceptual=null",
    "generator.loop.steps=3",
    "generator.network={depth: 2, width: 16}",
    "latents={features: true, flip: true, precision: fp32}",
    "sample={images: 4, steps: 2}",
    "generator.objective.class_token=16",
    "posttrain={pairs: 12, held_out: 4, check_every: 2, phase: {train: decoder, weights: {pixel: 1.0},"
    " loop: {steps: 2, batch: 4, lr: {tokenizer: 1.0e-3}}}}",
]


def codes(count: int = 3, width: int = WIDTH) -> Code:
    draw = torch.Generator().manual_seed(4)
    return Code(torch.randn(count, 16, 3, generator=draw), None, torch.randn(count, width, generator=draw))


def labels(*numbers: int) -> Condition:
    return Condition(labels=torch.tensor(numbers))


def entangled(**arguments) -> DiffusionTransformer:
    return make_network(**({"class_token": WIDTH, "patch_size": 2} | arguments))


def apart(network: DiffusionTransformer, z: Tensor, token: Tensor, u: float, asked: Condition) -> tuple[Tensor, Tensor]:
    """What the network answers of a code and of a token."""
    answer = network(join_token(z, token), torch.full((len(z),), u), asked)
    return split_token(answer, token.shape[1])


@pytest.mark.parametrize("width", [6, 7, 1])
def test_a_token_lies_in_rows_below_the_code(width):
    code = codes(width=width)
    state = join_token(code.z, code.class_token)
    assert state.shape == (3, 16 + count_token_rows(width, 3), 3) and torch.equal(state[:, :16], code.z)
    assert torch.equal(state[1, 16:].flatten()[:width], code.class_token[1])
    assert not state[:, 16:].flatten(1)[:, width:].any()
    z, token = split_token(state, width)
    assert torch.equal(z, code.z) and torch.equal(token, code.class_token)
    assert join_token(code.z, None) is code.z and count_token_rows(0, 3) == 0


def test_terms_are_the_squared_errors_of_two_velocities_at_one_level():
    code, network, objective = codes(), entangled(), FlowMatching(class_token=WIDTH, cosine=True)
    condition, draw = labels(1, 3, 0), torch.Generator().manual_seed(9)
    given = {
        "time": torch.tensor([0.2, 0.5, 0.9]),
        "noise": torch.randn(3, 16, 3, generator=draw),
        "class_token_noise": torch.randn(3, WIDTH, generator=draw),
    }
    terms = objective.loss(network, code, condition, objective.draw(code, GivenDraws(given)))
    flow, of_token, cosine = [], [], []
    for i, u in enumerate([0.2, 0.5, 0.9]):
        z = (1 - u) * code.z[i] + u * given["noise"][i]
        token = (1 - u) * code.class_token[i] + u * given["class_token_noise"][i]
        v, w = apart(network, z[None], token[None], u, condition[i : i + 1])
        aim = given["noise"][i] - code.z[i]
        flow.append((v[0] - aim).square().mean())
        cosine.append(1 - torch.cosine_similarity(v[0], aim, dim=-1).mean())
        of_token.append((w[0] - given["class_token_noise"][i] + code.class_token[i]).square().mean())
    assert objective.terms == ("flow", "cosine", "class_token") == tuple(terms)
    for name, by_hand in zip(terms, (flow, cosine, of_token)):
        torch.testing.assert_close(terms[name], torch.stack(by_hand).mean(), msg=name)


def test_code_and_token_each_see_the_other_and_what_fills_up_the_last_row_is_not_read():
    network, code, condition = entangled(), codes(2), labels(1, 2)
    z, token = apart(network, code.z, code.class_token, 0.5, condition)
    for other in (
        apart(network, code.z, -code.class_token, 0.5, condition),
        apart(network, -code.z, code.class_token, 0.5, condition),
    ):
        assert not torch.allclose(other[0], z, atol=1e-3) and not torch.allclose(other[1], token, atol=1e-3)
    state = join_token(code.z, code.class_token)
    filled = state.clone()
    filled[:, -1, 1:] = 5.0
    answers = [network(each, torch.full((2,), 0.5), condition) for each in (state, filled)]
    assert torch.equal(*answers) and not answers[0][:, -1, 1:].any()


@pytest.mark.parametrize("position", ["rotary", "rotary_and_fixed", "learned"])
def test_any_positions_go_with_a_token_and_hidden_states_have_its_row_first(position):
    network = entangled(position=position, norm="rms", feed_forward="swiglu")
    state = join_token(codes(2).z, codes(2).class_token)
    answer, (hidden,) = network(state, torch.full((2,), 0.5), labels(1, 2), taps=(1,))
    assert answer.shape == state.shape == (2, *network.state_shape) and hidden.shape == (2, 1 + 4, 32)
    assert hidden_layout(network, 1) == ([2, 2], 32)
    assert torch.equal(network.tap_blocks(state, torch.full((2,), 0.5), labels(1, 2), (1,))[0], hidden)
    with pytest.raises(ValueError, match="a code of 13 tokens does not fit"):
        network(state[:, :16], torch.full((2,), 0.5), labels(1, 2))


def test_a_new_network_predicts_nothing_and_a_plain_one_is_as_it_was():
    torch.manual_seed(0)
    new = DiffusionTransformer([4, 4], 3, 4, 2, 32, 2, class_token=WIDTH)
    assert not new(join_token(codes().z, codes().class_token), torch.ones(3), labels(1, 2, 3)).any()
    added = {name for name, _ in new.named_parameters()} - {name for name, _ in make_network().named_parameters()}
    assert {name.split(".")[0] for name in added} == {"class_token_layers"}
    assert FlowMatching().terms == ("flow",) and make_network().state_shape == (16, 3)


def test_every_part_is_trained_and_the_posterior_leaves_the_token_alone():
    network, code = entangled(), codes(4)
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    task = Generation(network, FlowMatching(class_token=WIDTH), {"flow": 1.0, "class_token": 0.03})
    batch = CodeBatch(code, torch.full_like(code.z, 1e-6), labels(0, 1, 2, 3))
    draws = StepDraws(0, 0, slice(0, 4), 4)
    ((_, terms),) = task.turns(batch, draws, 0)
    u, noise = draws.uniform("time")[:, None], draws.normal("class_token_noise", (WIDTH,))
    torch.testing.assert_close(split_token(seen[0], WIDTH)[1], (1 - u) * code.class_token + u * noise)
    terms["class_token"].backward()
    touched = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert {"class_token_layers.embedding.weight", "class_token_layers.linear.weight"} <= set(touched)
    assert "head.linear.weight" not in touched and "patch_embedding.weight" in touched
    with pytest.raises(ValueError, match="stored without a class token"):
        task.objective.loss(network, Code(code.z), None, task.objective.draw(code, draws))


def test_sampling_carries_both_down_the_same_levels_and_leaves_the_token_out():
    network, objective, condition = entangled(), FlowMatching(class_token=WIDTH), labels(1, 2)
    found = generating.sample(objective, network, condition, SPEC, ImageDraws(generators(5, 6)), 4, Guidance(scale=3.0))
    draws, null, told = ImageDraws(generators(5, 6)), network.null(condition), []
    z, token = draws.normal("start", (16, 3)), draws.normal("class_token_start", (WIDTH,))
    with torch.no_grad():
        for u, lower in zip((1.0, 0.75, 0.5, 0.25), (0.75, 0.5, 0.25, 0.0)):
            v, w = apart(network, z, token, u, condition)
            v0, w0 = apart(network, z, token, u, null)
            z, token = z + (lower - u) * (v0 + 3 * (v - v0)), token + (lower - u) * (w0 + 3 * (w - w0))
            told.append(z)
    torch.testing.assert_close(found.z, z)
    assert found.class_token is None and found.z.shape == (2, 16, 3)
    seen: list[Tensor] = []
    arguments = (network, condition, SPEC, ImageDraws(generators(5, 6)), 4, Guidance(scale=3.0))
    generating.sample(objective, *arguments, on_step=lambda step, level, state: seen.append(state.clone()))
    assert len(seen) == 4 and all(torch.allclose(*pair, atol=1e-5) for pair in zip(seen, told))


@pytest.mark.parametrize("solver", ["euler", "heun", "unipc", "dpmpp_2m", "sde", "sde_heun"])
def test_an_image_is_its_seeds_alone_by_every_solver(solver):
    pipe = make_pipeline(network=entangled(), objective=FlowMatching(class_token=WIDTH))
    made = [
        pipe(label, generator=generators(*seeds), num_inference_steps=5, output_type="latent", solver=solver).images
        for label, seeds in (([1, 2, 3], (5, 6, 7)), ([2], (6,)))
    ]
    assert made[0].shape == (3, 16, 3)
    torch.testing.assert_close(made[0][1], made[1][0], atol=1e-4, rtol=1e-4)


def test_a_callback_changes_the_code_alone():
    objective, network = FlowMatching(class_token=WIDTH), entangled()
    arguments = (network, labels(1), SPEC)
    plain = generating.sample(objective, *arguments, ImageDraws(generators(5)), 2).z
    same = generating.sample(
        objective, *arguments, ImageDraws(generators(5)), 2, on_step=lambda step, level, z: z.clone()
    ).z
    other = generating.sample(
        objective, *arguments, ImageDraws(generators(5)), 2, on_step=lambda step, level, z: z * 0
    ).z
    assert torch.equal(plain, same) and not other.any()


@pytest.mark.parametrize("own", [None, 1.0, 3.0])
@torch.no_grad()
def test_guidance_moves_the_token_by_a_scale_of_its_own(own):
    network, condition = entangled(), labels(1, 2)
    state = join_token(codes(2).z, codes(2).class_token)
    predict = guided(network, condition, Guidance(2.0, interval=(0.0, 0.6), class_token=own))
    time = torch.full((2,), 0.5)
    answers = [split_token(network(state, time, each), WIDTH) for each in (condition, network.null(condition))]
    z, token = split_token(predict(state, 0.5), WIDTH)
    for found, scale, (aim, base) in zip((z, token), (2.0, 2.0 if own is None else own), zip(*answers)):
        torch.testing.assert_close(found, base + scale * (aim - base), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predict(state, 0.7), network(state, torch.full((2,), 0.7), condition))
    if own is not None:
        with pytest.raises(ValueError, match="guidance of a class token is asked for, and this network has none"):
            guided(make_network(), condition, Guidance(2.0, class_token=own))


@torch.no_grad()
def test_a_feature_is_stored_as_the_teacher_gives_it_or_normed(teacher):
    model = VisionModel.load(Path(teacher))
    model.model.layernorm.weight.fill_(2.0)
    images = torch.rand(2, 3, 12, 12) * 2 - 1
    raw = ClassTokenFeature(model, "none")(images)
    assert torch.equal(raw, model.outputs(model.pixels(images)).last_hidden_state[:, 0])
    normed = ClassTokenFeature(model)(images)
    torch.testing.assert_close(normed, torch.nn.functional.layer_norm(raw, (16,)))
    assert not torch.allclose(raw, normed, atol=1e-2)


@torch.no_grad()
def test_the_row_of_the_token_is_aligned_with_the_teachers(teacher):
    model, images = VisionModel.load(Path(teacher), size=8), torch.rand(2, 3, 16, 16) * 2 - 1
    tap = Tap(model, 0, class_token=True)
    found, tokens = tap(images, (2, 2)), model.all_tokens(images)
    torch.testing.assert_close(found, tokens)  # of a grid of its own
    torch.testing.assert_close(tap(images, (1, 1))[:, 1], tokens[:, 1:].mean(dim=1))
    network, node = entangled(), {"kind": "feature_cosine", "block": 1, "head": {"layers": 1}}
    state, time = join_token(codes(2).z, codes(2).class_token), torch.full((2,), 0.5)
    _, (hidden,) = network(state, time, labels(1, 2), taps=(1,))
    for reads, rows in ((True, hidden), (False, hidden[:, 1:])):
        loss = build(
            "losses", node | {"class_token": reads}, extractor=Tap(model, 0, class_token=reads), dim=32, grid=[2, 2]
        )
        _, heads = NetworkWithHeads(network, {"feature_cosine": loss})(state, time, labels(1, 2))
        torch.testing.assert_close(heads["feature_cosine"], loss.head(rows))
    bound = (6 / (32 + 16)) ** 0.5  # Xavier's, as REPA has it
    weight = loss.head.layers[0].weight
    assert 0.9 * bound < weight.abs().max() <= bound and not loss.head.layers[0].bias.any()


def test_codes_are_regenerated_with_their_token():
    objective, network, code = FlowMatching(class_token=WIDTH), entangled(), codes(2)
    arguments = (labels(1, 2), 0.5, ImageDraws(generators(5, 6)), 1)
    found = generating.regenerate(objective, network, code, *arguments)
    draws = ImageDraws(generators(5, 6))
    z, token = draws.normal("start", (16, 3)), draws.normal("class_token_start", (WIDTH,))
    z, token = (code.z + z) / 2, (code.class_token + token) / 2
    with torch.no_grad():
        v, _ = apart(network, z, token, 0.5, labels(1, 2))
    torch.testing.assert_close(found.z, z - 0.5 * v)
    assert torch.equal(generating.regenerate(objective, network, code, labels(1, 2), 1.0, draws, 1).z, code.z)
    free = generating.regenerate(objective, network, Code(code.z), labels(1, 2), 0.0, ImageDraws(generators(5, 6)), 2)
    torch.testing.assert_close(
        free.z, generating.sample(objective, network, labels(1, 2), SPEC, ImageDraws(generators(5, 6)), 2).z
    )


def test_what_does_not_fit_is_refused_in_a_line():
    pipe = make_pipeline(network=entangled(), objective=FlowMatching(class_token=WIDTH))
    with pytest.raises(ValueError, match="leave guidance_channels out"):
        pipe([1], guidance_channels=2)
    with pytest.raises(ValueError, match="weak network has class_token=0"):
        pipe.weak = make_network()
    where = "generator.objective.class_token"
    joint = ["latents.class_token=classifier", f"{where}=64", "generator.weights.class_token=0.03"]
    wide = "{kind: wide_head_transformer, depth: 1, width: 16, heads: 2, head_width: 32, head_heads: 2}"
    for recipe, changes, says in (
        ("digits_reg", ["latents.class_token=null"], f"latents.class_token is None, but {where} is 64"),
        ("digits_repa", ["latents.class_token=classifier"], f"latents.class_token is classifier, but {where} is 0"),
        ("digits_reg", [f"generator.network={wide}"], "wide_head_transformer reads no class token"),
        ("digits_reg", ["sample.guidance.channels=3"], "sample.guidance.channels"),
        (
            "digits_reg",
            ["generator.losses.alignment.class_token=true"],
            "class_token is of a transformer, and a classif",
        ),
        (
            "digits_repa",
            ["sample.guidance.class_token=2"],
            "sample.guidance.class_token: this objective has no class token",
        ),
        (
            "digits_repa",
            ["generator.losses.alignment.class_token=true"],
            "class_token is true, and the generator denoises",
        ),
        ("digits_reg", ["generator.weights.class_token=null"], "generator.weights.class_token is missing"),
        ("digits_reg", ["latents.class_token=dinov2_large"], "weights dinov2_large are not on this machine"),
        ("digits_reg", ["generator.network.class_token=64"], "determined by an earlier stage"),
        ("digits_reg", [f"{where}=-1"], "is -1; give 0 or more"),
        ("digits_repae", joint, f"^{where} is 64, but in joint training no class token"),
    ):
        with pytest.raises(ValueError, match=says):
            check_recipe(load(recipe, changes))
            check_weights(load(recipe, changes))
    for kind in set(kinds("objectives")) - {"flow_matching", "random_order"}:
        assert find("objectives", kind)().class_token == 0


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """A folder with a tiny DINOv2, whose class token has 16 values."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    Dinov2Model(Dinov2Config(**HALF | {"patch_size": 4, "image_size": 12})).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory) -> tuple[Recipe, Path]:
    """A recipe, and its run with short trainings, one of them of the decoder on what the generator makes."""
    place = tmp_path_factory.mktemp("line")
    changes = [*SHORT, f"latents.class_token={teacher}", f"generator.losses.alignment.teacher={teacher}"]
    changes += ["generator.losses.alignment.class_token=true", "sample.guidance.class_token=1.5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for stage in ORDER[ORDER.index("train_tokenizer") : ORDER.index("sample") + 1]:
            assert run.main([stage, "digits_reg", *changes]) == 0
    return load("digits_reg", changes), place / "runs" / "digits_reg"


def test_a_line_goes_the_whole_way_to_a_folder_that_diffusers_alone_loads(finished, tmp_path):
    recipe, folder = finished
    logged = json.loads((folder / "generator" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"network/flow", "network/class_token", "network/feature_cosine"} <= set(logged)
    assert len(list((folder / "samples").glob("0*.png"))) == 4
    pipe = assemble(recipe, folder / "decoder", folder / "generator")
    pipe.save_pretrained(tmp_path / "ours")
    write_self_contained(tmp_path / "ours", tmp_path / "alone")
    ours = LatentPipeline.from_pretrained(tmp_path / "ours")
    alone = DiffusionPipeline.from_pretrained(tmp_path / "alone", trust_remote_code=True)
    made = [each([3, 8], generator=generators(1, 2), output_type="pt").images for each in (pipe, ours, alone)]
    assert made[0].shape == (2, 3, 16, 16) and torch.allclose(*made[:2]) and torch.allclose(*made[1:], atol=1e-4)
    assert ours.network.config.class_token == ours.objective.class_token == 16


def test_the_stored_token_is_the_teachers_of_the_same_view_at_mean_0_and_std_1(finished, teacher):
    recipe, folder = finished
    store, images = LatentStore(folder / "latents"), Images(recipe.data, "train")
    rows = torch.arange(5)
    for flip in (False, True):
        with torch.no_grad():
            features = VisionModel.load(Path(teacher), size="grid").features(images.plain(rows, flip).images)
        token = store.plain(rows, flip).code.class_token
        scaled = (features - features.mean(dim=1, keepdim=True)) / features.std(dim=1, keepdim=True, correction=0)
        torch.testing.assert_close(token, scaled, atol=1e-3, rtol=1e-3)
    described = store.manifest["class_token"]
    assert described["teacher"] == "dinov2_16" and described["width"] == 16
    store.verify()


def test_a_width_that_is_not_the_teachers_is_refused_before_anything_is_stored(teacher, tmp_path):
    changes = [*SHORT, f"latents.class_token={teacher}", "generator.objective.class_token=24"]
    recipe = load("digits_reg", changes)
    with pytest.raises(ValueError, match="dinov2_16 has 16 values; set .* to that, not to 24"):
        FrozenNetworks(recipe, Images(recipe.data, "train"), tmp_path, Accelerator(cpu=True)).load(ClassToken(recipe))


def test_rotary_positions_leave_the_token_unturned():
    layers, tables = ClassTokenLayers(WIDTH, 8), rotary_tables([2, 2], 8)
    h, (cosines, sines) = layers(torch.randn(2, WIDTH), torch.zeros(2, 4, 8), tables)
    assert h.shape == (2, 5, 8) and not h[:, 1:].any()
    assert torch.equal(cosines[1:], tables[0]) and torch.equal(sines[1:], tables[1])
    turned = torch.randn(1, 1, 5, 8)
    assert torch.equal(rotate(turned, cosines, sines)[:, :, 0], turned[:, :, 0])


def test_the_published_network_has_the_published_size():
    recipe = load("imagenet256_vfmvae_reg")
    line = check_recipe(recipe)
    with torch.device("meta"):
        network = build_network(recipe, line.spec, 1000, line.generator.objective)
        head = FeatureHead(1152, 768, [16, 16], HeadShape(layers=3, hidden=2048))
    count = count_parameters(network) + network.positions.numel() + count_parameters(head)
    assert round(count / 1e6) == 685, "VFM-VAE's table counts the head of the aligned block"
