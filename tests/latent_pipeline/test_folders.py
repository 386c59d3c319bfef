"""A LatentPipeline's folder is all that another process needs, and what is not one is refused in a line."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
)
from safetensors.torch import load_file, save_file
from support.fresh_process import run_fresh
from support.tiny_pipeline import make_network, make_pipeline, pixels

import pipeline.saved_folders
from pipeline import LatentPipeline

ROOT = Path(__file__).parents[2]
RELOAD = """
import sys, torch
torch.set_num_threads(1)
from pipeline import LatentPipeline
pipe = LatentPipeline.from_pretrained(sys.argv[1])
generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
torch.save(pipe([1, 2], generator=generators, output_type="pt").images, sys.argv[2])
"""


def test_a_fresh_process_in_another_folder_makes_the_same_images(pipe, saved, tmp_path):
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    run_fresh(RELOAD, saved, "images.pt", cwd=tmp_path, env=here)
    loaded = torch.load(tmp_path / "images.pt", weights_only=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = pixels(pipe, [1, 2], [5, 6])
    torch.set_num_threads(threads)
    assert torch.equal(loaded, expected)


def test_the_index_says_all_and_comes_back(saved, pipe):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "LatentPipeline"
    assert index["network"] == ["pipeline.networks.diffusion_transformer", "DiffusionTransformer"]
    assert index["tokenizer"] == ["pipeline.tokenizers.conv_autoencoder", "ConvAutoencoder"]
    assert index["id2label"]["1"] == "great white shark" and index["sampling"]["steps"] == 3
    loaded = LatentPipeline.from_pretrained(saved)
    assert loaded.id2label == pipe.id2label and loaded.defaults == pipe.defaults
    for name, value in pipe.network.config.items():
        assert name.startswith("_") or loaded.network.config[name] == value


def test_diffusers_own_class_says_what_it_lacks(saved):
    with pytest.raises(AttributeError, match="LatentPipeline"):
        DiffusionPipeline.from_pretrained(saved)


def test_files_are_readable_by_others(pipe, tmp_path):
    before = os.umask(0o022)
    try:
        pipe.save_pretrained(tmp_path / "open")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "open").rglob("*") if path.is_file()]
    assert len(files) == 7 and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


def test_only_modules_of_ours_are_imported(saved, tmp_path):
    folder = tmp_path / "odd"
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    pipe = LatentPipeline.from_pretrained(saved)
    pipe.save_pretrained(folder)
    (folder / "checksums.json").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    sys.path.insert(0, str(tmp_path))
    try:
        for module, message in (("evil", "has not been imported"), ("pipeline.networks.gone", "does not have; update")):
            index["network"][0] = module
            (folder / "model_index.json").write_text(json.dumps(index))
            with pytest.raises(ValueError, match=message):
                LatentPipeline.from_pretrained(folder)
    finally:
        sys.path.remove(str(tmp_path))
    assert "evil" not in sys.modules


@pytest.mark.parametrize("part, lost", [("network", "head.linear.weight"), ("tokenizer", "std")])
def test_missing_weights_are_refused(saved, tmp_path, part, lost):
    LatentPipeline.from_pretrained(saved).save_pretrained(tmp_path / "cut")
    file = tmp_path / "cut" / part / "diffusion_pytorch_model.tessera.safetensors"
    weights = load_file(file)
    del weights[lost]
    (tmp_path / "cut" / "checksums.json").unlink()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="incomplete|lacks") as error:
        LatentPipeline.from_pretrained(tmp_path / "cut")
    assert lost in str(error.value) and "\n" not in str(error.value)


def test_folders_that_are_no_pipeline(tmp_path):
    with pytest.raises(ValueError, match="holds no model_index.json"):
        LatentPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        LatentPipeline.from_pretrained(tmp_path / "a" / "b")


def test_a_hub_id_is_downloaded_whole_first(saved, pipe, monkeypatch):
    asked = {}

    def download(source, **options):
        asked.update(options, source=source)
        return str(saved)

    monkeypatch.setattr(pipeline.saved_folders, "snapshot_download", download)
    loaded = LatentPipeline.from_pretrained("someone/digits", revision="v1")
    assert asked["source"] == "someone/digits" and asked["revision"] == "v1" and "*.bin" in asked["ignore_patterns"]
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(pixels(loaded, [1], [0]), pixels(pipe, [1], [0]))


def test_variants_and_given_components(saved, pipe, tmp_path):
    other = make_pipeline(network=make_network(4, depth=1))
    raw = make_network(4)
    with torch.no_grad():
        raw.head.linear.weight.mul_(1.5)
    pipe.save_pretrained(tmp_path / "both")
    raw.save_pretrained(tmp_path / "both" / "network", variant="raw")
    loaded = LatentPipeline.from_pretrained(tmp_path / "both", variant="raw")
    assert torch.equal(loaded.network.head.linear.weight, raw.head.linear.weight)
    assert torch.equal(
        LatentPipeline.from_pretrained(tmp_path / "both").network.head.linear.weight * 1.5, raw.head.linear.weight
    )
    assert LatentPipeline.from_pretrained(saved, network=other.network).network is other.network


@pytest.mark.parametrize("how", ["moved", "loaded"])
def test_bfloat16_stays_near(saved, pipe, how):
    narrow = LatentPipeline.from_pretrained(saved, **({"dtype": torch.bfloat16} if how == "loaded" else {}))
    narrow = narrow.to(torch.bfloat16)
    narrow.set_progress_bar_config(disable=True)
    seen = {}
    narrow.network.register_forward_pre_hook(lambda module, inputs: seen.update(z=inputs[0].dtype, t=inputs[1].dtype))
    made = pixels(narrow, [0, 1], [0, 1])
    assert seen == {"z": torch.bfloat16, "t": torch.float32} and narrow.dtype == torch.bfloat16
    assert made.dtype == torch.float32
    assert (made - pixels(pipe, [0, 1], [0, 1])).abs().max() < 0.05
