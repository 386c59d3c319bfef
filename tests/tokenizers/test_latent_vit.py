"""The tokenizer of two DINOv2: equal to the published transformer, what starts it, what each tuning moves."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from support.tiny_pipeline import make_recipe, randomised
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from pipeline.checks.recipe import check_recipe
from pipeline.checks.tokenizer import check_tokenizer
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments, build
from pipeline.critics.patch import Patch
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.pixel import Pixel
from pipeline.nn.dinov2 import ScaledBlock
from pipeline.nn.lora import LowRankLinear
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.building import count_parameters
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.recipes.tokenizer_training import Phase
from pipeline.runs.workspace import Workspace
from pipeline.tokenizers.latent_vit import LatentViT
from pipeline.training.reconstruction import Reconstruction
from pipeline.vision.dinov2_weights import resampled_kernel, resampled_positions
from stages import train_tokenizer

CODES = {"kind": "vector_quantize", "dim": 4, "vocab": 12}
SIZES = {"width": 24, "depth": 2, "heads": 3, "patch_size": 4}
PUBLISHED = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 5, "image_size": 20}


def vit(**changes) -> LatentViT:
    return LatentViT(**({"image_size": 16, "bottleneck": CODES} | SIZES | changes)).eval()


def pictures(count: int = 4, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size) * 2 - 1


def published(**changes) -> Dinov2Model:
    """A tiny DINOv2 of transformers whose weights are all drawn, its layer scales, too."""
    return randomised(Dinov2Model(Dinov2Config(**(PUBLISHED | changes))), 5)


@pytest.fixture
def start(tmp_path) -> str:
    published().save_pretrained(tmp_path / "dinov2")
    return str(tmp_path / "dinov2")


def phase(train: str = "all", **more: Any) -> Phase:
    return Phase(Loop(1, {"tokenizer": 1e-3}), {"pixel": 1.0, "vq": 1.0, "commit": 0.25}, train=train, **more)


def turn(task: Reconstruction, images: Tensor) -> dict[str, Tensor]:
    """The terms of the tokenizer's turn, after its backward."""
    draws = StepDraws(0, 0, slice(0, len(images)), len(images))
    _, terms = next(iter(task.turns(ImageBatch(images), draws, 0)))
    sum(terms.values()).backward()
    return terms


@torch.no_grad()
def test_the_transformer_is_the_published_one(start):
    keys = load_file(Path(start) / "model.safetensors")
    assert "encoder.layer.1.attention.attention.query.weight" in keys, "not the keys that are on the hub"
    tokenizer, images = vit(image_size=20, patch_size=5, encoder_start=start, decoder_start=start), pictures(3, 20)
    expected = published()(images).last_hidden_state
    reading, painting = tokenizer.encoder.vit, tokenizer.decoder.vit
    ours = reading.run_blocks(reading.add_positions(reading.embed_patches(images)))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.05, "nothing to tell apart"
    torch.testing.assert_close(
        painting.run_blocks(painting.add_positions(reading.embed_patches(images))), expected, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_every_member_of_the_sequence_has_its_position_and_level(start):
    """Class token and patches, then the latents, before which the decoder has the class token again."""
    tokenizer = vit(image_size=20, patch_size=5, encoder_start=start)
    for half, first, length in ((tokenizer.encoder, 1, 33), (tokenizer.decoder, 0, 34)):
        places, latents = torch.randn(2, 16, 24), torch.randn(2, 16, 24)
        h = half.join_latents(places, latents, first)
        assert h.shape == (2, length, 24)
        torch.testing.assert_close(h[:, :17], half.vit.add_positions(places) + half.levels[0])
        torch.testing.assert_close(h[:, -16:], latents + half.vit.positions[1:] + half.levels[1])
    row = vit(tokens=5).encoder
    h = row.join_latents(torch.zeros(2, 16, 24), torch.zeros(2, 5, 24), 1)
    torch.testing.assert_close(h[0, 17:], row.positions)
    torch.testing.assert_close(h[0, 1:17], row.vit.positions[1:])


def test_a_kernel_of_other_patches_answers_to_enlarged_patches_as_before():
    kernel = torch.randn(6, 3, 14, 14)
    assert resampled_kernel(kernel, 14) is kernel
    patch = torch.randn(1, 3, 14, 14)
    enlarged = F.interpolate(patch, (16, 16), mode="bicubic", antialias=True)
    new = resampled_kernel(kernel, 16)
    assert new.shape == (6, 3, 16, 16)
    torch.testing.assert_close(F.conv2d(enlarged, new), F.conv2d(patch, kernel), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(new.sum((2, 3)), kernel.sum((2, 3)), atol=1e-3, rtol=1e-4)  # a constant image


def test_positions_of_another_grid_keep_ramps_and_the_class_token():
    ramp = torch.arange(16.0)
    rows, columns = torch.meshgrid(ramp, ramp, indexing="ij")
    positions = torch.cat([torch.tensor([[9.0, 9.0]]), torch.stack([rows, columns], dim=-1).flatten(0, 1)])
    assert resampled_positions(positions, 16) is positions
    new = resampled_positions(positions, 8)
    assert new.shape == (65, 2) and torch.equal(new[0], positions[0])
    grid = new[1:].unflatten(0, (8, 8))[2:6, 2:6]  # away from the border, where the kernel is cut off
    expected = 2 * torch.arange(2.0, 6.0) + 0.5  # the middles of two
    torch.testing.assert_close(grid[..., 0], expected[:, None].expand(4, 4))
    torch.testing.assert_close(grid[..., 1], expected[None].expand(4, 4))
    spike = torch.zeros(1 + 18 * 18, 1)
    spike[1 + 9 * 18 + 9] = 1  # beside the middles of three, where interpolation without antialiasing would not see it
    assert abs(resampled_positions(spike, 6).sum() - 1 / 9) < 1e-3


@torch.no_grad()
def test_weights_fit_other_patches_and_another_number_of_them(start):
    tokenizer = vit(image_size=48, patch_size=8, encoder_start=start, decoder_start=start)
    theirs, reading = load_file(Path(start) / "model.safetensors"), tokenizer.encoder.vit
    kernel = theirs["embeddings.patch_embeddings.projection.weight"]
    torch.testing.assert_close(reading.patch_embedding.weight, resampled_kernel(kernel, 8))
    positions = resampled_positions(theirs["embeddings.position_embeddings"][0], 6)
    for half in (reading, tokenizer.decoder.vit):
        assert torch.equal(half.positions, positions)
        assert torch.equal(half.class_token, theirs["embeddings.cls_token"][0])
    assert tokenizer(pictures(1, 48)).images.shape == (1, 3, 48, 48)


@torch.no_grad()
@pytest.mark.parametrize("bottleneck", [CODES, {"kind": "gaussian", "dim": 5}, {"kind": "identity", "dim": 3}])
@pytest.mark.parametrize(
    "size, changes",
    [
        (16, {}),
        (16, {"tokens": 1, "decoder_width": 16, "decoder_heads": 2}),
        (24, {"tokens": 23, "patch_size": 8, "decoder_depth": 1}),
        (12, {"patch_size": 6, "encoder_tuning": "lora", "lora_layers": "all"}),
    ],
)
def test_any_number_of_tokens(size, changes, bottleneck):
    tokenizer, images = randomised(vit(image_size=size, bottleneck=bottleneck, **changes), 1), pictures(2, size)
    arguments = Arguments.from_config(tokenizer)
    side = size // arguments["patch_size"]
    grid = (changes["tokens"],) if "tokens" in changes else (side, side)
    assert LatentViT.geometry(arguments) == LatentSpec(grid, bottleneck["dim"], bottleneck.get("vocab", 0))
    code, rebuilt = tokenizer.encode(images), tokenizer(images)
    assert code.z.shape == (2, *tokenizer.spec.shape)
    torch.testing.assert_close(tokenizer.decode(code), rebuilt.images)
    assert rebuilt.images.shape == images.shape and set(rebuilt.terms) == set(LatentViT.terms(arguments))
    if code.ids is not None:
        torch.testing.assert_close(tokenizer.decode(Code(ids=code.ids)), rebuilt.images)
    if "tokens" in changes:
        assert tokenizer.render(code.z[:, :1]).shape == images.shape, "a prefix"


@torch.no_grad()
def test_every_latent_sees_the_whole_image_and_every_pixel_the_whole_code():
    tokenizer, images = randomised(vit(bottleneck={"kind": "identity", "dim": 4}), 1), pictures(1)
    z = tokenizer.features(images)
    assert (z[0, 1:] - z[0, :-1]).abs().amax(-1).min() > 1e-4, "latents at different places read different things"
    made = tokenizer.render(z)
    images[..., -1, -1] += 0.5
    assert ((tokenizer.features(images) - z).abs().amax(-1) > 1e-6).all()
    z[:, -1] += 0.5
    assert ((tokenizer.render(z) - made).abs() > 1e-7).float().mean() > 0.99


def test_a_new_tokenizer_rebuilds_better_after_a_few_steps():
    torch.manual_seed(0)
    tokenizer, images = vit(bottleneck={"kind": "identity", "dim": 8}), pictures(4)
    of = Phase(Loop(1, {"tokenizer": 1e-3}), {"pixel": 1.0})
    task = Reconstruction(tokenizer, of, {"pixel": Pixel("l2")})
    optimizer, errors = torch.optim.AdamW(tokenizer.parameters(), 2e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        errors.append(turn(task, images)["pixel"].item())
        optimizer.step()
    assert errors[-1] < 0.5 * errors[0]


def trained_names(module: nn.Module, tuning: str) -> set[str]:
    names = {name for name, _ in module.named_parameters() if name.startswith("vit.")}
    moving = {name for name in names if "lora_" in name or name.startswith("vit.norm.")}
    return {"full": names, "lora": moving, "frozen": set()}[tuning]


@pytest.mark.parametrize(
    "encoder, decoder, part",
    [
        ("full", "full", "all"),
        ("frozen", "lora", "all"),
        ("lora", "frozen", "all"),
        ("lora", "lora", "decoder"),
        ("frozen", "full", "encoder"),
    ],
)
def test_every_trained_parameter_of_a_phase_has_a_gradient_and_no_other(encoder, decoder, part):
    tokenizer = randomised(vit(encoder_tuning=encoder, decoder_tuning=decoder, lora_layers="all"), 1).train()
    fixed = {id(parameter) for parameter in tokenizer.frozen_parameters()}
    assert all(p.requires_grad != (id(p) in fixed) for p in tokenizer.parameters()), "from the constructor on"
    turn(Reconstruction(tokenizer, phase(part), {"pixel": Pixel()}), pictures())
    expected = {"neck.codebook"} if part != "decoder" else set()
    for name, half, tuning in (("encoder", tokenizer.encoder, encoder), ("decoder", tokenizer.decoder, decoder)):
        if part in ("all", name):
            new = {inner for inner, _ in half.named_parameters() if not inner.startswith("vit.")}
            expected |= {f"{name}.{inner}" for inner in new | trained_names(half, tuning)}
    moved = {n for n, p in tokenizer.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    assert moved == expected
    assert {n for n, p in tokenizer.named_parameters() if p.requires_grad} == expected
    with pytest.raises(ValueError, match="no part 'both'; its parts: all, encoder, decoder"):
        list(tokenizer.trainable("both"))


def test_a_frozen_decoder_still_has_an_adaptive_weight():
    tokenizer = randomised(vit(decoder_tuning="frozen"), 1).train()
    critic = Patch(8, 1)
    adversary = Adversary({"kind": "patch", "width": 8, "layers": 1})
    of = phase(adversary=adversary)
    of.weights["adversarial"] = 0.5
    task = Reconstruction(tokenizer, of, {"pixel": Pixel("l2")}, critic)
    turn(task, pictures())
    assert task.metrics["adaptive_weight"] > 0 and tokenizer.last_layer.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("layers, each", [("attention", 2), ("feed_forward", 2), ("all", 4)])
def test_low_rank_matrices_begin_as_nothing_and_are_as_many_as_asked(layers, each, start):
    made, images = {}, pictures(2)
    for tuning in ("frozen", "lora"):
        torch.manual_seed(1)
        arguments = {"encoder_start": start, "encoder_tuning": tuning, "lora_layers": layers, "lora_rank": 3}
        made[tuning] = vit(**arguments)
    assert torch.equal(made["lora"].features(images), made["frozen"].features(images))
    adapted = [layer for layer in made["lora"].modules() if isinstance(layer, LowRankLinear)]
    assert len(adapted) == 2 * each and all(layer.lora_down.shape[0] == 3 for layer in adapted)
    for layer in adapted:
        layer.lora_up.normal_()
    assert not torch.allclose(made["lora"].features(images), made["frozen"].features(images), atol=1e-3)


@torch.no_grad()
def test_a_low_rank_layer_is_the_sum_of_two():
    layer = nn.Linear(5, 7)
    low = LowRankLinear(layer, 2, alpha=6.0)
    low.lora_up.normal_()
    whole = layer.weight + 3 * low.lora_up @ low.lora_down
    x = torch.randn(4, 5)
    torch.testing.assert_close(low(x), F.linear(x, whole, layer.bias))


@torch.no_grad()
def test_a_saved_folder_is_whole_without_its_start(start, tmp_path):
    tokenizer = vit(encoder_start=start, decoder_start=start, encoder_tuning="lora", decoder_tuning="frozen")
    for parameter in tokenizer.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    tokenizer.mean.fill_(0.3)
    tokenizer.save_pretrained(tmp_path / "saved")
    Path(start, "config.json").unlink()
    images, again = pictures(), LatentViT.from_pretrained(tmp_path / "saved")
    assert again.config.encoder_start is None and again.config.decoder_start is None
    assert torch.equal(again(images).images, tokenizer(images).images)
    assert torch.equal(again.encode(images).z, tokenizer.encode(images).z)
    for (name, ours), theirs in zip(again.named_parameters(), tokenizer.parameters(), strict=True):
        assert ours.requires_grad == theirs.requires_grad, name


def recipe_of(start: str, **model):
    node = {"kind": "latent_vit", "bottleneck": CODES, "encoder_start": start, "decoder_start": start} | SIZES | model
    loop = {"steps": 2, "batch": 4, "lr": {"tokenizer": 1e-2}, "warmup": 0, "ema": 0.5}
    weights = {"pixel": 1.0, "vq": 1.0, "commit": 0.25}
    neighbours = {"kind": "codebook_neighbours", "strength": 3, "fraction": 0.5}
    phases = {
        "main": {"weights": weights, "perturbation": neighbours, "loop": loop},
        "decoder": {"train": "decoder", "weights": weights, "loop": loop},
    }
    return make_recipe(tokenizer={"model": node, "phases": phases})


def test_the_stage_leaves_what_is_frozen_as_the_start_has_it(start, tmp_path):
    recipe = recipe_of(start, encoder_tuning="frozen", decoder_tuning="lora", drop_path=0.3)
    check_tokenizer(recipe)
    train_tokenizer.run(recipe, Workspace(tmp_path, Accelerator(cpu=True)), tmp_path / "out")
    trained, anew = LatentViT.from_pretrained(tmp_path / "out"), build_anew(recipe)
    fixed = {id(parameter) for parameter in anew.frozen_parameters()}
    assert fixed
    for (name, before), after in zip(anew.named_parameters(), trained.parameters(), strict=True):
        if id(before) in fixed:
            assert torch.equal(after, before), name
        elif not name.endswith("lora_down"):  # at the first step its gradient is zero, for `lora_up` is
            assert not torch.equal(after, before), name
    folders = [part for part in train_tokenizer.uses(recipe) if isinstance(part, dict)]
    assert start in folders[0], "another start is another result"


def build_anew(recipe) -> LatentViT:
    torch.manual_seed(recipe.seed)
    return build("tokenizers", recipe.tokenizer.model, image_size=recipe.data.size)


@torch.no_grad()
def test_a_left_out_branch_is_nothing_and_a_kept_one_scaled_up():
    block, x = randomised(ScaledBlock(12, 3, 0.25), 1), torch.randn(4, 5, 12)
    kept = [torch.tensor(flags)[:, None, None] for flags in ([True, True, False, False], [True, False, True, False])]
    made = block(x, tuple(kept))
    torch.testing.assert_close(made[3], x[3])
    attention = block.scale1 * block.attention(block.norm1(x))
    torch.testing.assert_close(made[1], (x + attention / 0.75)[1])
    torch.testing.assert_close(block(x[2:3], None), block.eval()(x)[2:3])
    draws = StepDraws(0, 0, slice(0, 4000), 4000)
    first, second = block.draw_kept_branches(draws, "blocks.1")
    assert first.shape == (4000, 1, 1) and 0.72 < first.float().mean() < 0.78
    assert (first == second).float().mean() < 0.7, "the two branches are dropped apart"


@torch.no_grad()
def test_branches_are_left_out_in_training_alone_and_by_the_step():
    tokenizer, images = randomised(vit(drop_path=0.9, bottleneck={"kind": "identity", "dim": 4}), 1), pictures(8)
    assert [block.drop_path for block in tokenizer.decoder.vit.blocks] == [0.0, 0.9]
    whole = tokenizer(images).images
    first, again, second = (StepDraws(0, step, slice(0, 8), 8) for step in (0, 0, 1))
    assert torch.equal(tokenizer(images, draws=first).images, whole)
    tokenizer.train()
    assert torch.equal(tokenizer(images).images, whole), "without draws, as in encode and decode"
    made = tokenizer(images, draws=first).images
    assert not torch.allclose(made, whole) and torch.equal(tokenizer(images, draws=again).images, made)
    assert not torch.allclose(tokenizer(images, draws=second).images, made)
    half = tokenizer(images[4:], draws=StepDraws(0, 0, slice(4, 8), 8)).images
    torch.testing.assert_close(half, made[4:])


def test_gradient_checkpointing_changes_no_gradient():
    tokenizer, images = randomised(vit(drop_path=0.5, encoder_tuning="lora"), 1).train(), pictures(2)
    found = []
    for _ in range(2):
        tokenizer.zero_grad()
        tokenizer(images, draws=StepDraws(0, 3, slice(0, 2), 2)).images.square().sum().backward()
        found.append({name: p.grad.clone() for name, p in tokenizer.named_parameters() if p.grad is not None})
        tokenizer.enable_gradient_checkpointing()
    assert tokenizer.is_gradient_checkpointing and len(found[0]) > 30
    torch.testing.assert_close(*found)


def test_parts_hold_every_parameter_once():
    tokenizer = vit(tokens=3)
    held = [id(p) for part in ("encoder", "decoder") for p in tokenizer.trainable(part)]
    assert sorted(held) == sorted(id(p) for p in tokenizer.parameters())
    assert any(p is tokenizer.last_layer for p in tokenizer.trainable("decoder"))
    assert not {name for name, _ in tokenizer.named_children()} & set(tokenizer.config)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"heads": 5}, "a width of 24 is not divisible by 5 heads"),
        ({"decoder_width": 20}, "a width of 20 is not divisible by 3 heads"),
        ({"patch_size": 5}, "16 pixels do not divide by patch_size 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_without_building(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        LatentViT.geometry(Arguments.complete(LatentViT, {"image_size": 16, "bottleneck": CODES} | SIZES | changes))
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_images_and_codes_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="images of 16x16 pixels, not 16x20"):
        vit().encode(torch.zeros(1, 3, 16, 20))
    with pytest.raises(ValueError, match="a code of 17 tokens is not this tokenizer's, which has 16"):
        vit().render(torch.zeros(1, 17, 4))


@pytest.mark.parametrize("where", ["encoder_start", "decoder_start"])
@pytest.mark.parametrize(
    "config, words",
    [
        ({"hidden_size": 32}, "has hidden_size 32, here it is 24"),
        ({"num_hidden_layers": 3}, "has num_hidden_layers 3, here it is 2"),
        ({"num_attention_heads": 2}, "has num_attention_heads 2, here it is 3"),
        ({"model_type": "dinov2_with_registers"}, "has model_type dinov2_with_registers, here it is dinov2"),
        ({"use_swiglu_ffn": True}, "has use_swiglu_ffn True, here it is False"),
    ],
)
def test_other_models_are_refused_without_building(config, words, where, start):
    file = Path(start) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(ValueError, match=f"{where}: .*{words}") as caught:
        LatentViT.geometry(Arguments.complete(LatentViT, {"image_size": 16, "bottleneck": CODES, where: start} | SIZES))
    assert "\n" not in str(caught.value)


def test_starts_that_are_incomplete_or_unknown_are_refused(start):
    file = Path(start) / "model.safetensors"
    state = load_file(file)
    without = {name: value for name, value in state.items() if name != "layernorm.bias"}
    register = state | {"embeddings.register_tokens": torch.zeros(1, 4, 24)}
    narrow = state | {"encoder.layer.1.mlp.fc1.bias": torch.zeros(48)}
    for changed, words in (
        (without, "encoder_start: .* has no layernorm.bias; it is not a DINOv2 of 2 blocks"),
        (register, "has 1 weights that this transformer lacks: embeddings.register_tokens"),
        (narrow, r"blocks.1.up.bias is \[48\] in .* and \[96\] in the recipe"),
    ):
        save_file(changed, file)
        with pytest.raises(ValueError, match=words):
            vit(encoder_start=start)
    file.unlink()
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        vit(decoder_start=start)
    for device in ("cpu", "meta"):
        with torch.device(device), pytest.raises(ValueError, match="encoder_start: './not/here' is no folder here"):
            vit(encoder_start="./not/here")
    with torch.device("meta"):
        assert vit(encoder_start="nobody/nothing").last_layer.is_meta, "a check of a recipe fetches nothing"


def test_published_weights_are_found_by_name_and_by_hub_id_where_teachers_are(start, tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_WEIGHTS", str(tmp_path))
    shutil.copytree(start, tmp_path / "dinov2-base")
    plain = vit(encoder_start=start).encoder.vit.class_token
    for name in ("dinov2_base", "facebook/dinov2-base"):
        assert torch.equal(vit(encoder_start=name).encoder.vit.class_token, plain)


@pytest.mark.parametrize(
    "fragment, data, grid, millions",
    [("robustok_vit", "imagenet256", (16, 16), 172), ("digits_vit_vq", "digits", (4, 4), 1)],
)
def test_the_fragments_fit_a_line_and_have_the_published_size(fragment, data, grid, millions, tmp_path):
    text = f"name: a\ninclude: [data/{data}, tokenizers/{fragment}, networks/digits_causal]\n"
    text += "generator: {objective: {kind: next_token}, weights: {next_token: 1.0}}\n"
    (tmp_path / "a.yaml").write_text(text)
    recipe = load(str(tmp_path / "a.yaml"))
    check_recipe(recipe)
    spec = check_tokenizer(recipe).spec
    assert spec.grid == grid
    with torch.device("meta"):
        built = build("tokenizers", recipe.tokenizer.model, image_size=recipe.data.size)
    assert round(count_parameters(built) / 1e6) == millions
