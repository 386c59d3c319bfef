"""Models that a recipe names to begin with: their places, and where each is found."""

import pytest
from huggingface_hub import constants

from pipeline.checks.nodes import named_models
from pipeline.checks.weights import check_weights, describe_weights
from pipeline.recipes.schema import load
from pipeline.vision.named_model import NamedModel

DINO = "facebook/dinov2-base"


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """A machine that holds no published weights."""
    monkeypatch.setenv("TESSERA_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def model_in(folder, weights="model.safetensors"):
    folder.mkdir(parents=True)
    for name in ("config.json", weights):
        (folder / name).write_text("{}")
    return folder


def cached(repository):
    """The folder that the hub's cache has of a repository's newest state."""
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("1")
    return repository / "snapshots/1"


@pytest.mark.parametrize(
    "name, settings, places",
    [
        ("imagenet256_robustok_rar_b", [], {f"tokenizer.model.{part}_start": DINO for part in ("encoder", "decoder")}),
        (
            "imagenet256_titok_l32",
            [],
            {
                "tokenizer.model.proxy_start": "imported/maskgit_vqgan",
                "tokenizer.phases.proxy_codes.losses.proxy_codes.path": "imported/maskgit_vqgan",
            },
        ),
        ("imagenet256_rae", [], {"tokenizer.model.frozen_encoder.start": "facebook/dinov2-with-registers-base"}),
        ("imagenet256_dit_xl2", [], {"tokenizer.model.path": "stabilityai/sd-vae-ft-ema"}),
        ("imagenet256_repae", ["joint.critic=a"], {"tokenizer.start": "imported/sdvae", "joint.critic": "a"}),
        ("digits_rae", ["generator.start=a"], {"generator.start": "a"}),
        ("digits", [], {}),
    ],
)
def test_every_place_that_names_one(name, settings, places):
    assert {place: model.given for place, model in named_models(load(name, settings))} == places


def test_it_is_found_here_in_the_folder_of_weights_and_in_the_cache_of_the_hub(tmp_path):
    model = NamedModel(DINO, hub=True)
    assert model.origin() == f"{DINO}, to be fetched from the hub" and not model.missing
    snapshot = cached(tmp_path / "hub/models--facebook--dinov2-base")
    assert model.folder is None
    model_in(snapshot)
    assert model.folder == snapshot
    (snapshot / "model.safetensors").unlink()
    assert model.folder is None, "a config alone is no model"
    given = model_in(tmp_path / "weights/dinov2-base")
    assert model.folder == NamedModel("dinov2_base", hub=True).folder == given
    assert model.origin() == f"{DINO}, {given}"


def test_a_stock_autoencoder_may_be_a_part_of_a_pipeline(tmp_path):
    recipe = load("imagenet256_dit_xl2", ["tokenizer.model.path=some/pipeline", "tokenizer.model.subfolder=vae"])
    vae = cached(tmp_path / "hub/models--some--pipeline") / "vae"
    ((_, model),) = named_models(recipe)
    assert model.folder is None and not model.missing
    model_in(vae, "diffusion_pytorch_model.safetensors")
    assert model.folder == vae


def test_a_folder_is_here_or_missing(tmp_path):
    model = NamedModel("imported/vavae")
    assert model.missing and model.origin() == "imported/vavae, missing"
    assert not NamedModel("imported/vavae", hub=True).missing, "the same words may be a model of the hub"
    model_in(tmp_path / "imported/vavae")
    assert not model.missing and model.origin() == "imported/vavae, imported/vavae"
    known = NamedModel("dinov2_base", hub=True)
    assert known.missing and "weights dinov2_base are not on this machine; run hf download" in known.remedy()


def test_all_that_are_missing_are_told_together(tmp_path):
    starts = ["tokenizer.start=one", "generator.start=two", "weights.require=true"]
    recipe = load("digits", starts)
    with pytest.raises(ValueError) as error:
        check_weights(recipe)
    for place, folder in (("tokenizer.start", "one"), ("generator.start", "two")):
        assert f"{place}: there is no folder {folder} on this machine; train it or" in str(error.value)
        assert f"{place}: {folder}, missing" in describe_weights(recipe)
    model_in(tmp_path / "one")
    with pytest.raises(ValueError, match="generator.start: there is no folder two") as error:
        check_weights(recipe)
    assert "tokenizer.start" not in str(error.value)
    model_in(tmp_path / "two")
    check_weights(load("digits", starts[:2]))
