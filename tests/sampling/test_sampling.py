"""Many images into a folder: each a function of its label and seed, however many processes make them and how often."""

import gc
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from support.processes import start_script, start_two
from support.tiny_pipeline import generators, make_pipeline, make_recipe, make_run

from pipeline import LatentPipeline
from pipeline.components import structure
from pipeline.images.grids import make_grid
from pipeline.sampling.from_folder import FolderSettings, plan_folder, sample_folder
from pipeline.sampling.many_images import Plan, choose_labels, counted, sample_images
from stages import sample as stage

ROOT = Path(__file__).parents[2]
TWO = """
import sys, torch
torch.set_num_threads(1)
from accelerate import Accelerator
from pipeline.sampling.from_folder import sample_folder
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
sample_folder(sys.argv[1], {"images": 7, "batch": 3, "out": sys.argv[2]}, accelerator)
"""
MANY = """
import sys, torch
torch.set_num_threads(1)
from accelerate import Accelerator
from pipeline.sampling.from_folder import sample_folder
sample_folder(sys.argv[1], {"images": 3000, "batch": 3, "out": sys.argv[2]}, Accelerator(cpu=True))
"""


HOLD = """
import sys, time
from pathlib import Path
from pipeline.runs.lock import hold
with hold(Path(sys.argv[1]), "samples"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled") / "pipeline"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(saved, accelerator, tmp_path_factory):
    """Seven images, in batches of three."""
    out = tmp_path_factory.mktemp("made") / "images"
    return sample_folder(str(saved), {"images": 7, "batch": 3, "out": str(out)}, accelerator)


def read(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("[0-9]*.png"))]).astype(int)


def refused(match, call, *arguments):
    with pytest.raises(ValueError, match=match) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


def test_every_image_is_what_the_pipeline_makes_of_its_label_and_seed(made):
    pipe, images = make_pipeline(), read(made)
    assert images.shape == (7, 16, 16, 3)
    for i in (0, 4, 6):
        alone = np.asarray(pipe(i % 4, generator=generators(i)).images[0]).astype(int)
        assert abs(alone - images[i]).max() <= 1
    assert len({image.tobytes() for image in images}) == 7


def test_the_archive_is_what_the_images_are(made):
    with np.load(made / "samples.npz") as archive:
        assert archive["arr_0"].dtype == np.uint8 and archive["arr_1"].dtype == np.int64
        assert np.array_equal(archive["arr_0"], read(made))
        assert archive["arr_1"].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert Image.open(made / "grid.png").size == (4 * 64 + 3 * 2, 2 * 64 + 2)


def test_the_protocol_says_how(made):
    protocol = json.loads((made / "samples.json").read_text())
    assert protocol["network_evaluations"] == 3 and protocol["steps"] == 3
    assert protocol["guidance"]["scale"] == 2 and protocol["precision"] == "fp32"
    assert protocol["labels"] == "balanced" and protocol["seeds"] == "0 + i" and protocol["images"] == 7
    assert protocol["versions"]["torch"] == torch.__version__ and protocol["network"] == "DiffusionTransformer"


def test_finished_images_are_kept_and_missing_ones_made_again(saved, made, accelerator, tmp_path):
    out = tmp_path / "again"
    settings = {"images": 7, "batch": 4, "out": str(out)}
    sample_folder(str(saved), settings, accelerator)
    whole = read(out)
    (out / "000003.png").unlink()
    (out / "samples.npz").unlink()
    Image.new("RGB", (16, 16), (1, 2, 3)).save(out / "000005.png")
    times = {path: path.stat().st_mtime_ns for path in out.glob("0*.png")}
    sample_folder(str(saved), settings, accelerator)
    assert {path: path.stat().st_mtime_ns for path in times} == times, "a finished image was made again"
    again = read(out)
    assert (again[5] == (1, 2, 3)).all() and (out / "samples.npz").exists()
    others = [0, 1, 2, 3, 4, 6]
    assert np.array_equal(again[others], whole[others]), "made in the same batch, to the bit"
    assert abs(whole - read(made)).max() <= 1, "the size of the batch changed the images"
    assert [path.name for path in out.glob(".*")] == [".lock"]


def test_a_folder_that_another_command_fills_is_refused(saved, tmp_path, accelerator):
    settings = {"images": 2, "out": str(tmp_path)}
    sample_folder(str(saved), settings, accelerator)
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=rf"is in use by process {other.pid}"):
            sample_folder(str(saved), settings, accelerator)
    finally:
        other.kill()
        other.communicate()
    sample_folder(str(saved), settings, accelerator)


def test_damaged_images_are_named_and_a_damaged_protocol_makes_all_anew(saved, made, accelerator, tmp_path, capsys):
    out = shutil.copytree(made, tmp_path / "images")
    settings = {"images": 7, "batch": 3, "out": str(out)}
    image = (out / "000003.png").read_bytes()
    for damaged in (b"", image[:60], b"letter"):
        (out / "000003.png").write_bytes(damaged)
        refused("000003.png is damaged .*; delete it", sample_folder, str(saved), settings, accelerator)
    for damaged in ("", "[]", '{"images": 7'):
        (out / "samples.json").write_text(damaged)
        sample_folder(str(saved), settings, accelerator)
        assert "samples.json is damaged" in capsys.readouterr().out
        assert np.array_equal(read(out), read(made))


def test_a_folder_of_something_else_is_refused(saved, made, accelerator, tmp_path):
    other = {"images": 8, "out": str(made)}
    refused("holds images with images=7", sample_folder, str(saved), other, accelerator)
    refused(
        "holds images with steps=3", sample_folder, str(saved), {"images": 7, "steps": 2, "out": str(made)}, accelerator
    )
    (tmp_path / "letter.txt").write_text("dear")
    refused("holds no samples.json", sample_folder, str(saved), {"out": str(tmp_path)}, accelerator)
    assert len(list(made.glob("0*.png"))) == 7


def test_two_processes_make_the_same_images(saved, made, tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    out = tmp_path / "images"
    for process in start_two(tmp_path / "two.py", saved, out, log=tmp_path / "log", cwd=tmp_path):
        process.finish()
    assert np.array_equal(read(out), read(made)), "in the same batches, to the bit"
    assert json.loads((out / "samples.json").read_text())["processes"] == 2


def test_a_killed_sampling_goes_on_to_the_same_bits(saved, accelerator, tmp_path):
    (tmp_path / "many.py").write_text(MANY)
    out, whole = tmp_path / "images", tmp_path / "whole"
    killed = start_script(tmp_path / "many.py", saved, out, log=tmp_path / "log", cwd=tmp_path)
    while len(there := list(out.glob("0*.png"))) < 8:
        assert killed.process.is_alive(), f"it ended before it could be killed: {killed.printed()}"
        time.sleep(0.02)
    killed.process.kill()
    killed.wait()
    there = sorted(out.glob("0*.png"))
    (out / ".000007.png").write_bytes(b"half an image")
    for path in there[20:]:
        path.unlink()  # what is left to make is little, and not at the end of a batch
    there[4].unlink()
    (out / "samples.json").unlink()
    times = {path: path.stat().st_mtime_ns for path in out.glob("0*.png")}
    pipe = LatentPipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    plan = Plan([i % 4 for i in range(23)], list(range(23)), 3, "fp32", {})
    for folder in (out, whole):
        sample_images(pipe, plan, folder, accelerator)
    assert len(times) >= 7 and {path: path.stat().st_mtime_ns for path in times} == times
    for name in [*(f"{i:06d}.png" for i in range(23)), "samples.npz", "grid.png"]:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_images_are_let_go_once_they_are_written(accelerator, tmp_path, monkeypatch):
    """Resident memory is what benchmarks/many_images.py measures."""
    save, held = Image.Image.save, []

    def watched(image, *arguments, **settings):
        held.append(sum(isinstance(thing, Image.Image) for thing in gc.get_objects()))
        save(image, *arguments, **settings)

    monkeypatch.setattr(Image.Image, "save", watched)
    before = sum(isinstance(thing, Image.Image) for thing in gc.get_objects())
    plan = Plan([0] * 60, list(range(60)), 4, "fp32", {})
    sample_images(make_pipeline(), plan, tmp_path / "out", accelerator)
    assert max(held[:-1]) - before <= 2 * plan.batch, "one batch, and the one before it until it is replaced"


def test_what_the_command_line_asks_for():
    pipe = make_pipeline()

    def plan(**settings):
        return plan_folder(structure(FolderSettings, settings), pipe)

    assert plan(labels=[3, "zero"], images=5).labels == [3, 0, 3, 0, 3]
    assert plan(labels="great white shark").labels == [1] and plan(labels=2).seeds == [0]
    assert plan(seeds=[4, 9]).seeds == [4, 9] and plan(seeds=[4, 9]).labels == [0, 1]
    assert plan(seed=5, images=3).seeds == [5, 6, 7] and len(plan().labels) == 16
    refused("3 seeds for 2 images", lambda: plan(seeds=[1, 2, 3], images=2))
    refused("did you mean 'great white shark'", lambda: plan(labels=["great wite shark"]))
    refused("did you mean 'images'", lambda: plan(image=3))
    refused("images: 'many' is not a whole number", lambda: plan(images="many"))


def test_settings_that_do_not_fit(saved, accelerator):
    refused("did you mean 'solver'", sample_folder, str(saved), {"sampler": {"sovler": "heun"}}, accelerator)
    refused("neither a folder nor a hub id", sample_folder, "no/such/folder", {}, accelerator)


def test_random_labels_belong_to_seeds():
    labels = choose_labels("random", list(range(4000)), 4)
    assert choose_labels("random", [7, 3], 4) == [labels[7], labels[3]]
    assert all(900 < labels.count(label) < 1100 for label in range(4))
    assert choose_labels("balanced", [0, 1, 2], 0) is None


def test_evaluations_are_counted():
    pipe = make_pipeline()
    for settings, expected in (({"solver": "heun", "num_inference_steps": 5}, 5), ({"guidance_scale": 1.0}, 3)):
        with counted(pipe.network) as calls:
            pipe([0, 1], **settings)
        assert calls.total() == expected


def test_bfloat16_is_near_and_says_so(accelerator, tmp_path):
    pipe = make_pipeline()
    for precision in ("fp32", "bf16"):
        sample_images(pipe, Plan([0, 1], [0, 1], 2, precision, {}), tmp_path / precision, accelerator)
        assert json.loads((tmp_path / precision / "samples.json").read_text())["precision"] == precision
    difference = abs(read(tmp_path / "bf16") - read(tmp_path / "fp32"))
    assert 0 < difference.max() < 16


def test_the_stage_samples_a_run_with_and_without_classes(tmp_path):
    for num_classes, labels in ((4, [0, 1, 2, 3, 0, 1, 2]), (0, [-1] * 7)):
        guidance = 2.0 if num_classes else 1.0
        recipe = make_recipe(sample={"images": 7, "steps": 3, "guidance": guidance, "batch": 3}, seed=11)
        work, out = make_run(tmp_path / f"run{num_classes}", num_classes), tmp_path / f"out{num_classes}"
        stage.run(recipe, work, out)
        with np.load(out / "samples.npz") as archive:
            assert archive["arr_1"].tolist() == labels
        pipe = make_pipeline(num_classes)
        expected = pipe(labels[2] if num_classes else None, generator=generators(13)).images[0]
        assert abs(np.asarray(expected).astype(int) - read(out)[2]).max() <= 1
        protocol = json.loads((out / "samples.json").read_text())
        assert protocol["recipe"] == "tiny" and protocol["seeds"] == "11 + i"


def test_what_changes_images_makes_samples_stale_and_nothing_else():
    assert stage.uses(make_recipe()) != stage.uses(make_recipe(seed=1))
    assert stage.uses(make_recipe()) != stage.uses(make_recipe(sample={"steps": 4}))
    assert stage.uses(make_recipe()) == stage.uses(make_recipe(publish={"license": "mit"}))


def test_grids_enlarge_small_images():
    images = [Image.new("RGB", (16, 16), (i, 0, 0)) for i in range(3)]
    grid = make_grid(images, 2)
    assert grid.size == (130, 130) and grid.getpixel((100, 10)) == (1, 0, 0) and grid.getpixel((10, 100)) == (2, 0, 0)
    assert [grid.getpixel((x, 10))[1] for x in (63, 64, 65, 66)] == [0, 255, 255, 0], "they stand apart"
    assert make_grid([Image.new("RGB", (100, 80))], 1).size == (100, 80)
