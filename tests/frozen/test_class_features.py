"""Teachers of class features: DINOv2, the stand-in, and how a recipe takes one or leaves it out."""

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from pipeline.checks.recipe import check_recipe
from pipeline.checks.weights import check_weights
from pipeline.frozen.networks import FrozenNetworks
from pipeline.frozen.stand_in import train_stand_in
from pipeline.images.reading import Images
from pipeline.losses.class_contrast import ClassContrast
from pipeline.nn.dinov2 import Dinov2
from pipeline.recipes.schema import Recipe, load
from pipeline.teachers.classifier import Classifier
from pipeline.teachers.vision_model import VisionModel
from pipeline.training.phase_parts import build_losses
from pipeline.vision import weights
from pipeline.vision.backbone import IMAGENET
from pipeline.vision.dinov2_weights import start_from

TEACHER = "tokenizer.phases.main.losses.semantic.teacher"
WIDER = "tokenizer.model.z_channels=48"
RECIPE = """
name: semantic
include: [data/digits, tokenizers/digits_vq_semantic, networks/digits_causal]
generator:
  objective: {kind: next_token}
  weights: {next_token: 1.0}
"""


@pytest.fixture
def dinov2(tmp_path) -> Path:
    """A folder as the hub's, of a DINOv2 whose features the digits' tokenizer can project."""
    folder = tmp_path / "dinov2"
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=42, mlp_ratio=2)
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> str:
    monkeypatch.delenv("TESSERA_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    path = tmp_path / "semantic.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_a_recipe_says_which_teacher_and_what_does_not_fit_stops_at_load(recipe, dinov2):
    found = f"weights.dinov2_base={dinov2}"
    for settings in ([], [f"{TEACHER}=auto"], [f"{TEACHER}=dinov2_base", found], [f"{TEACHER}={dinov2}"]):
        check_recipe(load(recipe, settings))
    check_recipe(load(recipe, [found, WIDER]))  # the recipe's classifier has as many features as it takes
    semantic = "tokenizer.phases.main.losses.semantic"
    for settings, words in (
        ([f"{TEACHER}=dinov2_base"], f"^{semantic}: the weights dinov2_base are not on this machine; run hf download"),
        (
            [f"{TEACHER}=dino"],
            f"^{semantic}.teacher: 'dino' is no folder here, no model of the hub, and none of .*dinov2_base",
        ),
        ([f"{TEACHER}=auto", found, WIDER], f"^{semantic}: .*dinov2_32 has 32 channels, but the tokenizer projects 48"),
        ([f"{semantic}.extractor=3"], f"^{semantic}.extractor is determined"),
        (
            ["tokenizer.phases.main.train=decoder"],
            f"^{semantic}: .* trains codes, and train=decoder leaves them as they are",
        ),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            check_recipe(load(recipe, settings))
            check_weights(load(recipe, settings))
        assert "\n" not in str(caught.value)


def losses_of(recipe: Recipe, folder: Path) -> ClassContrast:
    """What training builds of the recipe's semantic loss alone."""
    phase = recipe.tokenizer.phases["main"]
    phase.losses = {"semantic": phase.losses["semantic"]}
    folder.mkdir()
    networks = FrozenNetworks(recipe, Images(recipe.data, "train"), folder, Accelerator(cpu=True))
    return build_losses(networks, phase)["semantic"]


def test_weights_that_are_found_are_used_and_a_stand_in_is_named(recipe, dinov2, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = losses_of(load(recipe, [f"{TEACHER}=auto", f"weights.dinov2_base={dinov2}"]), tmp_path / "a")
    assert found.name == "dinov2_32" and not caplog.records
    own, x = VisionModel.load(dinov2, size="grid"), torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(found.forward_arguments(x)["class_features"], own.features(x)), "16 pixels are a patch"
    with caplog.at_level(logging.WARNING):
        absent = losses_of(load(recipe, [f"{TEACHER}=auto", "data.size=8"]), tmp_path / "b")
    assert absent.name == "classifier" and absent.extractor.dim == 32
    assert "dinov2_base are not on this machine, so a classifier" in caplog.text
    caplog.clear()
    (tmp_path / "c").mkdir()
    (tmp_path / "b/class_teacher").rename(tmp_path / "c/kept")
    kept = Classifier.from_pretrained(tmp_path / "c/kept")
    assert torch.equal(kept.project.weight, absent.extractor.project.weight)


def test_a_teacher_of_resampled_patches_is_the_transformer_that_starts_from_the_same_weights(recipe, dinov2, tmp_path):
    kept = "tokenizer.phases.main.losses.semantic.teacher_patch"
    stated = load(recipe, [f"{TEACHER}={dinov2}", f"{kept}=8"])
    check_recipe(stated)
    size, loss = stated.data.size, losses_of(stated, tmp_path / "resampled")
    started = Dinov2((size // 8) ** 2, 32, 2, 2, 8).eval()
    file = dinov2 / "model.safetensors"
    state = load_file(file)
    state = {k: F.pad(v, (0, 0) * (v.ndim - 1) + (0, 64)) if ".fc1." in k else v for k, v in state.items()}
    state = {k: F.pad(v, (0, 64)) if k.endswith("fc2.weight") else v for k, v in state.items()}  # four times as wide
    save_file(state, file)
    start_from(started, str(dinov2), "start")
    x = torch.rand(2, 3, size, size) * 2 - 1
    pixels = ((x + 1) / 2 - torch.tensor(IMAGENET[0])[:, None, None]) / torch.tensor(IMAGENET[1])[:, None, None]
    with torch.no_grad():
        expected = started.run_blocks(started.add_positions(started.embed_patches(pixels)))[:, 0]
    torch.testing.assert_close(loss.forward_arguments(x)["class_features"], expected)


def test_patches_that_cannot_be_resampled_are_one_line(recipe, dinov2, tmp_path):
    patch = "tokenizer.phases.main.losses.semantic.teacher_patch"
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "vit")
    for settings, words in (
        ([f"{TEACHER}={dinov2}", f"{patch}=7"], r"semantic\.teacher_patch is 7, which does not divide 16 pixels"),
        ([f"{TEACHER}=classifier", f"{patch}=8"], r"semantic\.teacher_patch is for a DINOv2, and .* classifier"),
        ([f"{TEACHER}={tmp_path / 'vit'}", f"{patch}=8"], r"semantic\.teacher_patch is for a DINOv2, and .* a vit"),
    ):
        with pytest.raises(ValueError, match=words):
            check_recipe(load(recipe, settings))


def test_a_model_of_the_hub_may_be_stated_and_is_fetched_when_it_is_built(recipe, dinov2, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(weights, "snapshot_download", lambda given, **_: fetched.append(given) or str(dinov2))
    for teacher in ("auto", "dinov2_base"):
        stated = load(recipe, [f"{TEACHER}={teacher}", "weights.dinov2_base=someone/dinov2-tiny"])
        check_recipe(stated)
        assert not fetched
        assert losses_of(stated, tmp_path / f"with_{teacher}").name == "dinov2_32"
        assert fetched.pop() == "someone/dinov2-tiny"
    cache = tmp_path / "none/models--someone--dinov2-tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("0123abc")
    (cache / "snapshots").mkdir()
    dinov2.rename(cache / "snapshots/0123abc")
    assert losses_of(stated, tmp_path / "cached").name == "dinov2_32" and not fetched
    with pytest.raises(ValueError, match="dinov2_32 has 32 channels, but the tokenizer projects 48"):
        check_recipe(load(recipe, [f"{TEACHER}=auto", "weights.dinov2_base=someone/dinov2-tiny", WIDER]))


def test_the_stand_in_is_a_function_of_the_seed(recipe):
    split = Images(load(recipe).data, "held_out")
    one, again, other = (train_stand_in(split, seed, dim=5, steps=2) for seed in (1, 1, 2))
    assert one.dim == 5 and torch.equal(one.project.weight, again.project.weight)
    assert not torch.equal(one.project.weight, other.project.weight)


def test_null_takes_an_included_entry_out(recipe):
    losses, weights = "tokenizer.phases.main.losses", "tokenizer.phases.main.weights"
    on_the_line = load(recipe, [f"{losses}.semantic=null", f"{weights}.class_contrast=null"])
    above = Path(recipe).with_name("without.yaml")
    above.write_text(
        "include: semantic\nname: without\n"
        "tokenizer: {phases: {main: {losses: {semantic: null}, weights: {class_contrast: null}}}}\n"
    )
    for without in (on_the_line, load(str(above))):
        check_recipe(without)
        phase = without.tokenizer.phases["main"]
        assert list(phase.losses) == ["pixel", "perceptual"] and "class_contrast" not in phase.weights
    again = load(str(above), [f"{losses}.semantic={{kind: class_contrast}}", f"{weights}.class_contrast=0.2"])
    check_recipe(again)
    assert again.tokenizer.phases["main"].weights["class_contrast"] == 0.2
    for override, words in (
        (
            f"{losses}.semantic=null",
            f"{weights}.class_contrast: there is no loss term .*class_contrast=null leaves it out",
        ),
        (f"{weights}.class_contrast=null", f"{weights}.class_contrast is missing"),
    ):
        with pytest.raises(ValueError, match=words):
            check_recipe(load(recipe, [override]))


def test_null_is_a_value_where_a_component_takes_it(recipe):
    stated = load(recipe, ["tokenizer.model.decoder_width=null", "sample.sampler.top_k=null"])
    assert stated.tokenizer.model["decoder_width"] is None and stated.sample.sampler == {"top_k": None}
