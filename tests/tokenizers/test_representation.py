"""Tokenizers on a frozen encoder: what stays as it is, what the branch beside it does, and that a folder is whole."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
import yaml
from accelerate import Accelerator
from support.fresh_process import answers_of_saved
from support.tiny_pipeline import make_recipe
from torch import Tensor

from pipeline.checks.tokenizer import check_tokenizer
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments, build
from pipeline.draws import GivenDraws, StepDraws
from pipeline.frozen import stand_in
from pipeline.images.reading import ImageBatch
from pipeline.losses.pixel import Pixel
from pipeline.nn.convolution_stages import MapSizes
from pipeline.nn.dropping_block import DropMasks, DroppingBlock
from pipeline.nn.texture_branch import Residual
from pipeline.perturbations.gaussian import Gaussian
from pipeline.recipes.files import CONFIGS
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.runs.workspace import Workspace
from pipeline.teachers.classifier import Classifier
from pipeline.tokenizers.representation import Representation
from pipeline.training.reconstruction import Reconstruction
from pipeline.vision.frozen_encoder import SAVED, VisionTransformer
from stages import train_tokenizer

SIZE = 16
STAND_IN = {"kind": "stand_in"}
VIT = {"kind": "vit", "width": 16, "depth": 1, "heads": 2, "hidden": 24}
CONV = {"kind": "conv", "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
RESIDUAL = {"kind": "residual", "channels": 4, "width": 16, "depth": 1, "heads": 2, "drop": 0.5}
SHALLOW = {"kind": "shallow", "channels": 6, "blocks": 1, "heads": 2}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {
    "dinov2_with_registers": {"patch_size": 7, "image_size": 35},
    "dinov3_vit": {"patch_size": 8, "image_size": 32, "num_register_tokens": 4},
    "siglip_vision_model": {"patch_size": 8, "image_size": 32},
    "vit_mae": {"patch_size": 8, "image_size": 32},
}
SYSTEMS = {
    "rae": {"pixel_decoder": VIT, "statistics": "element"},
    "svg": {"pixel_decoder": CONV, "texture_branch": RESIDUAL},
    "dinotok": {"frozen_encoder": STAND_IN | {"taps": [1, -1]}, "pixel_decoder": VIT, "texture_branch": SHALLOW},
}


def make(name: str = "rae", **changes: Any) -> Representation:
    torch.manual_seed(0)
    tokenizer = Representation(SIZE, **({"frozen_encoder": STAND_IN} | SYSTEMS[name] | changes))
    if tokenizer.can.needs_stand_in:
        tokenizer.load_stand_in(Classifier(3))
    return tokenizer.eval()


def pictures(count: int = 4, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def save_vision_model(folder: Path, kind: str) -> str:
    torch.manual_seed(2)
    config = transformers.AutoConfig.for_model(kind, **SMALL, **VISION[kind])
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


def draws(count: int, step: int = 0) -> StepDraws:
    return StepDraws(0, step, slice(0, count), count)


def turn(task: Reconstruction, images: Tensor, step: int = 0) -> None:
    ((_, terms),) = task.turns(ImageBatch(images), draws(len(images), step), step)
    sum(terms.values()).backward()


@torch.no_grad()
@pytest.mark.parametrize("name, dim", [("rae", 64), ("svg", 68), ("dinotok", 70)])
def test_codes_are_the_frozen_features_and_after_them_the_branch_s(name, dim):
    tokenizer, images = make(name), pictures()
    arguments = Arguments.from_config(tokenizer)
    assert Representation.geometry(arguments) == tokenizer.spec == LatentSpec((4, 4), dim)
    code, rebuilt = tokenizer.encode(images), tokenizer(images)
    assert rebuilt.images.shape == images.shape and not rebuilt.terms
    deep = tokenizer.encoder.trunk.maps(images)[-1].flatten(2).mT
    expected = (deep - deep.mean(-1, keepdim=True)) / (deep.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(code.z[..., :64], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokenizer.decode(code), rebuilt.images)
    torch.testing.assert_close(tokenizer.encode(images[1:2]).z, code.z[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SYSTEMS)
def test_training_moves_all_but_the_frozen_part(name):
    tokenizer, images = make(name), pictures()
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    phase = Phase(Loop(1, {"tokenizer": 1e-2}), {"pixel": 1.0}, perturbation={"kind": "gaussian", "scale": 0.5})
    task = Reconstruction(tokenizer.train(), phase, {"pixel": Pixel()})
    optimizer = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], 1e-2)
    for step in range(3):
        turn(task, images, step)
        for key, parameter in tokenizer.named_parameters():
            assert (parameter.grad is None) == key.startswith("encoder."), key
        optimizer.step()
        optimizer.zero_grad()
    assert not any(module.training for module in tokenizer.encoder.modules())
    for key, value in tokenizer.state_dict().items():
        if key not in ("texture.token", "texture.patch_embedding.bias"):
            assert torch.equal(value, before[key]) == (key.startswith("encoder.") or key in ("mean", "std")), key


@torch.no_grad()
def test_noise_is_training_s_alone():
    tokenizer, images = make(), pictures()
    noise = Gaussian(0.8)
    plain = tokenizer.train()(images, draws=draws(4)).images
    noisy = tokenizer(images, draws=draws(4), perturb=lambda *of: noise(*of, draws=draws(4), step=0)).images
    assert not torch.allclose(plain, noisy, atol=1e-3)
    tokenizer.eval()
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(images)), plain)


def branch(**changes: Any) -> Residual:
    torch.manual_seed(0)
    arguments = {name: value for name, value in RESIDUAL.items() if name != "kind"} | changes
    return Residual([(64, (4, 4))], SIZE, **arguments)


def test_a_matched_branch_has_mean_and_std_of_the_frozen_features():
    frozen = [3 * torch.randn(4, 64, 4, 4) - 2]
    residual = branch(drop=0.0, momentum=1.0).train()
    made = residual(pictures(), frozen)
    torch.testing.assert_close(made.mean(), frozen[0].mean(), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.std(unbiased=False), frozen[0].std(unbiased=False), atol=1e-3, rtol=1e-3)
    (made * torch.randn_like(made)).sum().backward()
    assert residual.head[2].weight.grad.abs().sum() > 0
    with torch.no_grad():
        made = residual(pictures(), frozen)
        torch.testing.assert_close(residual.eval()(pictures(), frozen), made, atol=1e-4, rtol=1e-4)
        alone = residual(pictures()[:1], [frozen[0][:1]])
        torch.testing.assert_close(alone, made[:1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_branch_of_an_image_is_dropped_as_a_whole_and_in_training_alone():
    residual, frozen = branch(), [torch.randn(4, 64, 4, 4)]
    residual.token.copy_(torch.arange(4.0))
    kept = GivenDraws({"texture": torch.tensor([0.9, 0.1, 0.7, 0.3])[:, None, None]})  # below 0.5 is dropped
    whole, made = residual(pictures(), frozen), residual(pictures(), frozen, kept)
    token = residual.token[:, None, None].expand(4, 4, 4)
    for i, stays in enumerate((True, False, True, False)):
        torch.testing.assert_close(made[i], whole[i] if stays else token)
    tokenizer = make("svg")
    assert torch.equal(tokenizer(pictures(), draws=draws(4)).images, tokenizer(pictures()).images)
    trained = tokenizer.train()(pictures(64), draws=draws(64)).code.z[..., 64:]
    dropped = (trained == tokenizer.texture.token).flatten(1).all(1)
    assert 16 < dropped.sum() < 48


RELEASED = {"matching": "channels", "token": "before", "positions": "learned", "class_token": True}


@torch.no_grad()
def test_a_branch_as_released_matches_each_channel_s_moments_with_the_token_among_them():
    frozen = [torch.randn(4, 64, 4, 4) * torch.rand(64, 1, 1) + torch.rand(64, 1, 1)]
    residual = branch(statistics="batch", **RELEASED)
    made, aims = residual(pictures(), frozen), frozen[0].movedim(1, 0).flatten(1)
    torch.testing.assert_close(made.mean(), aims.mean(), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.movedim(1, 0).flatten(1).std(1).mean(), aims.std(1).mean(), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(residual(pictures()[:1], frozen), made[:1], atol=1e-3)

    draws = GivenDraws({"texture": torch.tensor([0.9, 0.1, 0.7, 0.9])[:, None, None]})
    dropped = residual(pictures(), frozen, draws)
    torch.testing.assert_close(dropped.mean(), aims.mean(), atol=1e-4, rtol=0)
    assert (dropped[1] - dropped[1, :, :1, :1]).abs().max() < 1e-6  # one token at all positions

    running = branch(momentum=1.0, drop=0.0, **RELEASED).train()
    seen = running(pictures(), frozen)
    torch.testing.assert_close(running.eval()(pictures()[:1], frozen), seen[:1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="positions of 16 patches, and these images have 64"):
        residual(pictures(size=2 * SIZE), [torch.randn(4, 64, 8, 8)])


@torch.no_grad()
def test_dropout_of_the_branch_is_torchvisions_and_in_training_alone():
    """Masks of ones scale all that is kept; all that is dropped in a branch leaves the stream as it was."""
    drawn = []

    class Kept(GivenDraws):
        def keep_mask(self, name: str, shape: tuple[int, ...], rate: float) -> torch.Tensor:
            drawn.append((name, shape, rate))
            return torch.full((4, *shape), not name.endswith(("attention", "feed_forward", "texture")))

    residual = branch(drop=0.0, matching="none", dropout=0.25, class_token=True, depth=2)
    made = residual.project(pictures(), Kept({}))
    h = residual.patch_embedding(residual.normalise(pictures())).flatten(2).mT
    h = torch.cat([residual.class_token.expand(4, 1, -1), h], dim=1) + residual.places((4, 4), 1)
    torch.testing.assert_close(made, residual.head(residual.norm((h / 0.75)[:, 1:])))
    rows, heads = 17, residual.blocks[0].attention.heads
    shapes = {name.rpartition(".")[2]: shape for name, shape, rate in drawn if rate == 0.25}
    assert shapes["weights"] == (heads, rows, rows) and shapes["hidden"] == (rows, residual.blocks[0].up.out_features)
    assert len(drawn) == 1 + 2 * 4
    assert torch.equal(residual.project(pictures()), branch(drop=0.0, class_token=True, depth=2).project(pictures()))
    tokenizer = make("svg", texture_branch=RESIDUAL | {"drop": 0.0, "dropout": 0.3})
    whole = tokenizer(pictures(), draws=draws(4)).images
    assert torch.equal(whole, tokenizer(pictures()).images)
    assert not torch.allclose(
        tokenizer.train()(pictures(), draws=draws(4)).images, tokenizer(pictures()).images, atol=1e-3
    )


@torch.no_grad()
def test_a_block_drops_what_its_masks_say():
    torch.manual_seed(0)
    block = DroppingBlock(8, 2, rate=0.5)
    x, kept = torch.randn(3, 5, 8), torch.rand(3, 2, 5, 5) < 0.5
    masks = DropMasks(kept, torch.rand(3, 5, 8) < 0.5, torch.rand(3, 5, 32) < 0.5, torch.rand(3, 5, 8) < 0.5)
    q, k, v = block.attention.qkv(block.norm1(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / 2).softmax(dim=-1) * kept * 2
    h = x + 2 * masks.attention * block.attention.proj((weights @ v).transpose(1, 2).flatten(2))
    hidden = 2 * masks.hidden * F.gelu(block.up(block.norm2(h)))
    torch.testing.assert_close(block(x, masks), h + 2 * masks.feed_forward * block.down(hidden))


def layout(start: str, **given) -> MapSizes:
    """That of a vision transformer, of images of 32 pixels."""
    arguments = Arguments.complete(VisionTransformer, {"image_size": 32, "start": start} | given)
    return VisionTransformer.layout(arguments)


def geometry(given: dict) -> LatentSpec:
    return Representation.geometry(Arguments.complete(Representation, {"image_size": SIZE} | given))


@pytest.mark.parametrize("kind", VISION)
def test_a_vision_model_is_frozen_as_it_is_in_transformers(kind, tmp_path):
    start = save_vision_model(tmp_path / kind, kind)
    side = VISION[kind]["patch_size"] * 4
    encoder = VisionTransformer(32, start, image_patch=8, taps=[0, -1], norm="own").train()
    assert layout(start, image_patch=8, taps=[0, -1]) == [(16, (4, 4)), (16, (4, 4))]
    images = pictures(2, 32).requires_grad_()
    found = encoder(images)
    assert not found[0].requires_grad and not any(p.requires_grad for p in encoder.parameters())
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = torch.nn.functional.interpolate((images.detach() + 1) / 2, (side, side), mode="bicubic")
    arguments = {"noise": torch.arange(16).expand(2, -1)} if kind == "vit_mae" else {}
    changes = {"mask_ratio": 0.0} if kind == "vit_mae" else {}
    model = transformers.AutoModel.from_pretrained(start, **changes).eval()
    if kind in ("siglip_vision_model", "vit_mae"):
        arguments["interpolate_pos_encoding"] = True
    with torch.no_grad():
        seen = model(pixel_values=(pixels - mean) / std, output_hidden_states=True, **arguments)
    for ours, theirs in zip(found, (seen.hidden_states[0], seen.last_hidden_state)):
        torch.testing.assert_close(ours.flatten(2).mT, theirs[:, -16:], atol=1e-4, rtol=1e-3)
    plain = VisionTransformer(32, start, image_patch=8)(images)[0].movedim(1, -1)
    torch.testing.assert_close(plain.mean(-1), torch.zeros(2, 4, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(plain.var(-1, unbiased=False), torch.ones(2, 4, 4), atol=1e-2, rtol=0)


@torch.no_grad()
def test_saved_folders_are_whole_in_a_fresh_process_without_the_original(tmp_path):
    start = save_vision_model(tmp_path / "vision", "dinov2_with_registers")
    node = {"kind": "vision_transformer", "start": start, "image_patch": 4}
    tokenizers, images = {name: make(name) for name in SYSTEMS}, pictures()
    tokenizers["vision"] = make("svg", frozen_encoder=node)
    assert tokenizers["vision"].config.frozen_encoder["source"] == start
    assert tokenizers["vision"].config.frozen_encoder["start"] == SAVED
    shutil.rmtree(start)
    for tokenizer in tokenizers.values():
        tokenizer.mean.normal_(), tokenizer.std.uniform_(0.5, 2)
    answers = answers_of_saved(tmp_path, {name: (one.encode, images) for name, one in tokenizers.items()})
    for name, tokenizer in tokenizers.items():
        assert torch.equal(answers[name].z, tokenizer.encode(images).z), name
        again = Representation.from_pretrained(tmp_path / name)
        assert not again.can.needs_stand_in and not any(p.requires_grad for p in again.encoder.parameters())


def test_the_stage_fills_in_the_stand_in_and_the_folder_names_it(tmp_path):
    """Which it would train, were it not kept in the stage's folder already."""
    torch.manual_seed(3)
    kept = Classifier(10, stages=2, task="rotation")
    for buffer in kept.buffers():
        buffer.copy_(torch.rand(buffer.shape) + 0.5) if buffer.is_floating_point() else None
    kept.save_pretrained(tmp_path / "tokenizer" / "frozen" / "stand_in")
    phase = {"loop": {"steps": 2, "batch": 8, "lr": {"tokenizer": 1e-3}}, "train": "decoder", "weights": {"pixel": 1.0}}
    model = {"kind": "representation", "frozen_encoder": STAND_IN, "pixel_decoder": VIT}
    recipe = make_recipe(tokenizer={"model": model, "phases": {"main": phase}})
    check_tokenizer(recipe)
    train_tokenizer.run(recipe, Workspace(tmp_path, Accelerator(cpu=True)), tmp_path / "tokenizer")
    again = Representation.from_pretrained(tmp_path / "tokenizer")
    assert again.config.frozen_encoder["source"] == "rotation" and not again.can.needs_stand_in
    for name, value in again.encoder.trunk.state_dict().items():
        assert torch.equal(value, kept.state_dict()[name]), name


def test_phases_and_encoder_share_one_stand_in(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(stand_in, "train_stand_in", lambda *of: trained.append(of) or Classifier(10, stages=2))
    phase = {"loop": {"steps": 1, "batch": 8, "lr": {"tokenizer": 1e-3}}, "train": "decoder"}
    phase |= {"losses": {"perceptual": {"kind": "perceptual"}}, "weights": {"perceptual": 1.0}}
    model = {"kind": "representation", "frozen_encoder": STAND_IN, "pixel_decoder": VIT}
    recipe = make_recipe(tokenizer={"model": model, "phases": {"first": phase, "second": phase}})
    train_tokenizer.run(recipe, Workspace(tmp_path, Accelerator(cpu=True)), tmp_path / "tokenizer")
    assert len(trained) == 1 and [path.name for path in (tmp_path / "tokenizer" / "frozen").iterdir()] == ["stand_in"]


@torch.no_grad()
def test_statistics_of_each_position_bring_codes_to_unit_scale():
    tokenizer, images = make(statistics="element"), pictures(32)
    assert tokenizer.mean.shape == tokenizer.std.shape == (16, 64)
    z = tokenizer.encode(images).z
    tokenizer.mean.copy_(z.mean(0)), tokenizer.std.copy_(z.std(0, unbiased=False))
    code = tokenizer.encode(images).z
    torch.testing.assert_close(code.mean(0), torch.zeros(16, 64), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.decode(Code(z=code)), tokenizer(images).images, atol=1e-4, rtol=1e-3)
    assert make(statistics="channel").mean.shape == (64,)


HUB = {"kind": "vision_transformer", "start": "some/model", "image_patch": 4}
KNOWN = HUB | {"model": {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "patch_size": 7}}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"frozen_encoder": {"kind": "resnet"}}, "frozen_encoder needs a kind, one of: vision_transformer, stand_in"),
        ({"frozen_encoder": {"kind": "stand_in", "tap": [1]}}, "no argument 'tap'; did you mean 'taps'"),
        ({"frozen_encoder": {"kind": "stand_in", "taps": [7]}}, r"taps are \[7\]; name one or more of the maps 0 to 2"),
        ({"frozen_encoder": {"kind": "stand_in", "taps": [0, -1]}}, "2 taps without a texture_branch"),
        ({"frozen_encoder": HUB}, "state model_type of some/model under model"),
        ({"frozen_encoder": KNOWN | {"image_patch": 5}}, "16 pixels do not divide by image_patch, 5"),
        ({"frozen_encoder": {"kind": "vision_transformer"}}, "frozen_encoder.start is missing"),
        ({"pixel_decoder": CONV | {"multipliers": [1, 2, 2, 2]}}, "a position of the code is 4 pixels; name fewer"),
        ({"pixel_decoder": VIT | {"heads": 3}}, "width of 16 does not divide by 4 and by 3 heads"),
        ({"pixel_decoder": VIT | {"mean": [0.5]}}, "pixel_decoder.mean has 1 entries; give 3 entries"),
        ({"texture_branch": RESIDUAL | {"std": [1.0, 1.0, 0.0]}}, "texture_branch.std"),
        ({"pixel_decoder": VIT | {"stride": 3}}, "pixel_decoder.stride is determined by an earlier stage"),
        ({"texture_branch": SHALLOW}, "reads the first of two taps; there are 1"),
    ],
)
def test_mistakes_are_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as caught:
        geometry({"frozen_encoder": STAND_IN, "pixel_decoder": VIT} | changes)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("representation: ")
    assert geometry({"frozen_encoder": KNOWN, "pixel_decoder": VIT}) == LatentSpec((4, 4), 16)


def test_a_folder_of_another_model_is_refused(tmp_path):
    start = save_vision_model(tmp_path / "vision", "dinov3_vit")
    with pytest.raises(ValueError, match="has hidden_size 16, the recipe 32; correct it under model"):
        layout(start, model={"hidden_size": 32})
    (tmp_path / "vision" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        layout(start)


COUNTS = {
    "rae_dinov2b": ((16, 16), 768, 86.58, 415.06),
    "svg_dinov3splus": ((16, 16), 392, 28.69, 43.08),
    "dinotok_ae": ((16, 16), 832, 85.66, 303.95),
}


@pytest.mark.parametrize("fragment", COUNTS)
def test_published_sizes_are_built_on_meta(fragment):
    grid, dim, encoder, decoder = COUNTS[fragment]
    model = yaml.safe_load((CONFIGS / "tokenizers" / f"{fragment}.yaml").read_text())["tokenizer"]["model"]
    with torch.device("meta"):
        tokenizer = build("tokenizers", model, image_size=256)
    assert tokenizer.spec == LatentSpec(grid, dim)
    for part, millions in ((tokenizer.encoder, encoder), (tokenizer.decoder, decoder)):
        assert sum(p.numel() for p in part.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
