"""Generators of other projects know codes at one stated scale; imported, they are sampled and decoded at that."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from test_published_aligned import linear, reg_state, repa_state
from test_published_autoencoders import checkpoint
from torch import Tensor

import run
from pipeline.checks.recipe import check_recipe
from pipeline.code import Code
from pipeline.commands.import_checkpoint import import_checkpoint
from pipeline.latents.store import LatentStore
from pipeline.published import ldm
from pipeline.recipes.schema import load
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.tokenizers.pretrained import Pretrained

SCALE = 0.18215
VAE = {"multipliers": [1, 2], "blocks": 1, "bottleneck": {"kind": "gaussian", "dim": 4}}
STAGES = ("train-tokenizer", "train-jointly", "encode-dataset", "train-generator", "posttrain-decoder", "sample")


def generator(name: str) -> dict[str, Tensor]:
    """The state of a small generator of 8x8 codes of 4 channels and ten classes."""
    sizes = {"tokens": 16, "classes": 10}
    state = reg_state(token=64, **sizes) if name == "reg" else repa_state(**sizes)
    if name in ("sit", "dit"):
        state = {key: value for key, value in state.items() if not key.startswith("projectors")}
        state |= linear("final_layer.linear", 2 * 4 * 4, 16)
    return state


def imported(name: str, folder: Path, capsys: pytest.CaptureFixture) -> list[str]:
    """The words by which a recipe uses both parts, as the command import prints them."""
    tokenizer, state = checkpoint(**VAE)
    torch.save({"state_dict": state}, folder / "vae.ckpt")
    torch.save({"ema": generator(name)}, folder / "generator.pt")
    import_checkpoint(["ldm", str(folder / "vae.ckpt"), str(folder / "vae"), f"scale={SCALE}"])
    import_checkpoint([name, str(folder / "generator.pt"), str(folder / "generator"), "heads=2"])
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  '")]
    return [word.strip("'") for line in printed for word in line.split("' ") if word]


@pytest.mark.parametrize("name", ["dit", "sit", "repa", "reg"])
def test_an_imported_generator_is_sampled_and_decoded_at_its_own_scale(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["tokenizer.phases=null", "generator.loop.steps=0", "generator.losses={}", "latents.statistics=stored"]
    short += ["sample.images=4", "sample.steps=2", "sample.sampler=null", "sample.guidance=1.5"]
    short += ["generator.weights={flow: null, mse: 1, vb: 1}"] if name == "dit" else []
    short += ["generator.weights={flow: 1, class_token: 1}", "latents.class_token=classifier"] if name == "reg" else []
    settings = [*imported(name, tmp_path, capsys), *short]
    for stage in STAGES:
        assert run.main([stage, "digits", *settings]) == 0, stage
    samples = np.load("runs/digits/samples/samples.npz")["arr_0"]
    assert samples.shape == (4, 16, 16, 3)
    released = ldm.convert(torch.load("vae.ckpt", weights_only=True)["state_dict"])["tokenizer"]
    assert torch.equal(released.std, torch.ones(4))
    decoder, z = ConvAutoencoder.from_pretrained("runs/digits/decoder"), torch.randn(2, 64, 4)
    with torch.no_grad():
        expected = released.render(z / SCALE, grid=(8, 8))
        torch.testing.assert_close(decoder.decode(Code(z=z), grid=(8, 8)), expected, atol=1e-5, rtol=1e-4)
    store = LatentStore(Path("runs/digits/latents"))
    assert set(store.manifest["mean"]) == {0.0}
    np.testing.assert_allclose(store.manifest["std"], [1 / SCALE] * 4, rtol=1e-6)


def test_a_stated_scale_takes_the_place_of_measured_statistics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["latents.scale=0.5", "tokenizer.phases.main.loop.steps=2"]
    short += [f"tokenizer.phases.main.{part}.perceptual=null" for part in ("losses", "weights")]
    for stage in STAGES[:3]:
        assert run.main([stage, "digits", *short]) == 0
    manifest = LatentStore(Path("runs/digits/latents")).manifest
    assert set(manifest["mean"]) == {0.0} and set(manifest["std"]) == {2.0}


@pytest.mark.parametrize(
    "name, changes, words",
    [
        (
            "digits",
            ["latents.scale=0.5", "latents.statistics=stored"],
            "latents.scale is stated, and statistics=stored",
        ),
        ("digits", ["latents.scale=0"], "latents.scale is 0; give a number above 0"),
        ("digits_vq_ar", ["latents.scale=0.5"], "latents.scale is stated, and ids have no scale"),
        ("digits_repae", ["latents.scale=0.5"], "latents.scale is stated, and joint training finds that of its codes"),
        ("digits", ["latents.statistics=stored"], "latents.statistics is stored, and the tokenizer comes with no mean"),
    ],
)
def test_what_cannot_be_is_found_by_check(name, changes, words):
    with pytest.raises(ValueError, match=words) as error:
        check_recipe(load(name, changes))
    assert "\n" not in str(error.value)


STOCK = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16}
STOCK |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


@torch.no_grad()
@pytest.mark.parametrize("shift", [None, 0.25])
def test_a_stock_autoencoder_brings_its_scaling_factor_and_shift(tmp_path, shift):
    AutoencoderKL(**STOCK, scaling_factor=0.3, shift_factor=shift).save_pretrained(tmp_path)
    tokenizer = Pretrained(16, str(tmp_path))
    assert torch.equal(tokenizer.mean, torch.full((4,), shift or 0.0))
    torch.testing.assert_close(tokenizer.std, torch.full((4,), 1 / 0.3))
    images = torch.rand(1, 3, 16, 16)
    mode = tokenizer.autoencoder.encode(images).latent_dist.mode()
    theirs = ((mode - (shift or 0)) * 0.3).flatten(2).mT  # as pipelines of diffusers do it
    torch.testing.assert_close(tokenizer.encode(images).z, theirs)


def test_a_stock_autoencoder_without_statistics_is_found_by_check(tmp_path):
    model = "tokenizer.model={{kind: pretrained, path: {}}}"
    stored = ["latents.statistics=stored", "tokenizer.phases=null"]
    AutoencoderKL(**STOCK, scaling_factor=1.0).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="latents.statistics is stored, and the tokenizer comes with no mean"):
        check_recipe(load("digits", [model.format(tmp_path / "plain"), *stored]))
    AutoencoderKL(**STOCK).save_pretrained(tmp_path / "usual")  # 0.18215
    check_recipe(load("digits", [model.format(tmp_path / "usual"), *stored]))
    check_recipe(load("digits", ["tokenizer.model={kind: pretrained, path: some/hub, dim: 4, stride: 8}", *stored]))


def test_latent_statistics_of_each_channel_are_taken(tmp_path):
    model = AutoencoderKL(**STOCK, scaling_factor=0.5)
    model.register_to_config(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[0.5, 1.0, 2.0, 4.0])
    model.save_pretrained(tmp_path)
    tokenizer = Pretrained(16, str(tmp_path))
    assert tokenizer.mean.tolist() == [1, 2, 3, 4] and tokenizer.std.tolist() == [1, 2, 4, 8]
    model.register_to_config(latents_mean=[1.0, 2.0], latents_std=[0.5, 1.0])
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="states statistics of 2 channels, its latents have 4"):
        Pretrained(16, str(tmp_path))
