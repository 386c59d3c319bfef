"""All stages of the digits recipe, with short trainings: what is made again when, and by how many processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

import run
import stages
from pipeline import LatentPipeline
from pipeline.files.writing import states_in
from pipeline.planning.line_progress import read_progress
from pipeline.recipes.schema import load
from pipeline.training.overfitting import read_previews

ROOT = Path(__file__).parents[1]
SHORT = [
    "tokenizer.phases.main.loop.preview_every=2",
    "generator.loop.preview_every=3",
    "tokenizer.phases.main.loop.steps=4",
    "tokenizer.phases.main.losses={pixel: {kind: pixel}, perceptual: {kind: perceptual}}",
    "generator.loop.steps=4",
    "generator.network.depth=1",
    "sample.images=10",
    "sample.steps=2",
    "evaluate.images=40",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which `run.py all digits` has gone through."""
    place = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run.main(["all", "digits", *SHORT]) == 0
    return place


@pytest.mark.parametrize("recipe", ["digits_vq_ar", pytest.param("digits_titok_maskgit", marks=pytest.mark.slow)])
def test_ids_go_the_whole_way_to_a_folder_that_diffusers_alone_loads(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [value for value in SHORT if "sample.steps" not in value]
    assert run.main(["all", recipe, *short, "generator.network.width=32", "publish.self_contained=true"]) == 0
    folder = tmp_path / "runs" / recipe
    numbers = json.loads((folder / "report" / "metrics.json").read_text())
    assert 0 < numbers["code_usage"]["value"] <= 1
    ours = LatentPipeline.from_pretrained(folder / "pipeline")
    alone = DiffusionPipeline.from_pretrained(folder / "pipeline" / "self_contained", trust_remote_code=True)
    made = []
    for pipe in (ours, alone):
        pipe.set_progress_bar_config(disable=True)
        seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        made.append(pipe([3, 8], generator=seeds, output_type="pt").images)
    assert made[0].shape == (2, 3, 16, 16) and torch.allclose(*made, atol=1e-4)


def lines(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_every_artefact_is_there_with_its_provenance(finished):
    runs = finished / "runs" / "digits"
    for name in ("tokenizer", "joint", "latents", "generator", "decoder", "samples", "report", "pipeline"):
        note = json.loads((runs / name / "made_from.json").read_text())
        assert note["seconds"] >= 0 and note["versions"]["torch"] and len(note["hash"]) == 16
    hidden = [path.name for path in runs.iterdir() if path.name.startswith(".")]
    assert all(name.startswith(".lock") for name in hidden), "no drafts are left"
    assert not list(runs.rglob("*.bin")) and not list(runs.rglob("*.pkl")) and not list(runs.rglob("checkpoints"))
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in runs.rglob("*.safetensors")), "others may read"
    steps = {"tokenizer/main": (2, 4), "generator": (3, 4)}
    for place, seen in steps.items():
        names = [f"step_{step:08d}.png" for step in seen]
        assert sorted(path.name for path in (runs / "preview" / place).iterdir()) == ["latest.png", *names]
    assert [row.step for row in read_previews(runs / "tokenizer" / "phases" / "main")] == [2, 4]
    assert [row.step for row in read_previews(runs / "generator")] == [3, 4]
    assert "Tokenizer main: the same weighted terms of held-out" in (runs / "report" / "index.html").read_text()
    progress = read_progress(runs)
    assert progress.left(runs) is None and {stage.state for stage in progress.stages} == {"done"}
    archive = np.load(runs / "samples" / "samples.npz")
    assert archive["arr_0"].shape == (10, 16, 16, 3) and archive["arr_1"].tolist() == list(range(10))
    assert (runs / "report" / "index.html").exists() and (runs / "pipeline" / "model_index.json").exists()


def test_the_same_command_does_nothing_and_a_changed_value_what_follows(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    before = states_in(tmp_path)
    assert run.main(["all", "digits", *SHORT]) == 0
    assert sum("is up to date" in line for line in lines(capsys)) == len(stages.line(load("digits")))
    after = states_in(tmp_path)
    assert {path: (state.st_ino, state.st_mtime_ns) for path, state in before.items()} == {
        path: (state.st_ino, state.st_mtime_ns) for path, state in after.items()
    }, "nothing is written, so that the disk need not be writable"
    assert run.main(["all", "digits", *SHORT, "sample.batch=3"]) == 0, "only the speed"
    assert sum("is up to date" in line for line in lines(capsys)) == len(stages.line(load("digits")))
    assert run.main(["all", "digits", *SHORT, "sample.guidance=1.5"]) == 0
    made = [line.split(":")[0] for line in lines(capsys) if ": done in" in line]
    assert made == ["sample", "evaluate", "publish"]


def test_nothing_is_made_of_what_is_damaged(finished, tmp_path, monkeypatch, capsys):
    """Where a file keeps its size its content tells; where it does not, `all` says so although all is up to date."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    weights = Path("runs", "digits", "tokenizer", "diffusion_pytorch_model.tessera.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shutil.rmtree("runs/digits/joint")
    assert run.main(["train-jointly", "digits", *SHORT]) == 2 and not Path("runs", "digits", "joint").exists()
    assert f"{weights} is damaged: it is not what was written; delete runs/digits/tokenizer" in capsys.readouterr().err
    weights.write_bytes(content[:1000])
    assert run.main(["all", "digits", *SHORT]) == 2
    assert f"{weights} is damaged: it has 1000 bytes" in capsys.readouterr().err


def test_a_stage_needs_those_before_it(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert run.main(["train-generator", "digits", *SHORT, "tokenizer.phases.main.loop.steps=5"]) == 2
    message = capsys.readouterr().err
    assert "latents is missing or out of date; run: python run.py all digits" in message


def test_another_recipe_does_not_take_the_folder(finished, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(finished)
    assert run.main(["all", "digits_ddpm", "name=digits"]) == 2
    assert "holds a run of configs/digits.yaml" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / "holiday.jpg").touch()
    assert run.main(["all", "digits"]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_two_processes_make_the_same_samples(finished, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ROOT / "run.py"), "all", "digits", *SHORT]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = (np.load(place / "runs/digits/samples/samples.npz")["arr_0"] for place in (finished, tmp_path))
    assert np.abs(one.astype(int) - two.astype(int)).max() <= 2


@pytest.mark.slow
def test_grey_rectangles_of_16_bits_go_the_whole_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draws = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "scans" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        levels = draws.integers(0, 2**16, (5, 7), np.uint16)
        Image.fromarray(levels.repeat(8, axis=0).repeat(8, axis=1)).save(folder / f"{number}.png")
    data = ["data.source={kind: image_folder, path: scans, held_out: 0.3}", "data.size=[16,24]", "data.channels=grey"]
    data += ["data.depth=16", "data.crop=random", "data.shorter_side=20", "publish.self_contained=true"]
    assert run.main(["all", "digits", *SHORT, *data]) == 0
    folder = tmp_path / "runs" / "digits"
    pixels = np.load(folder / "samples" / "samples.npz")["arr_0"]
    assert pixels.shape == (10, 16, 24, 1) and pixels.dtype == np.uint16 and len(np.unique(pixels)) > 256
    with Image.open(folder / "samples" / "000000.png") as sample:
        assert np.array_equal(np.asarray(sample), pixels[0, ..., 0])
    assert "16x24 px, grey of 16 bits" in (folder / "pipeline" / "README.md").read_text()
    alone = DiffusionPipeline.from_pretrained(folder / "pipeline" / "self_contained", trust_remote_code=True)
    made = []
    for pipe in (LatentPipeline.from_pretrained(folder / "pipeline"), alone):
        pipe.set_progress_bar_config(disable=True)
        made.append(pipe([0, 1], generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)]).images)
    assert {(picture.mode, picture.size) for pictures in made for picture in pictures} == {("I;16", (24, 16))}
    apart = [np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() for one, other in zip(*made)]
    assert max(apart) <= 8, "levels of 65,536"
