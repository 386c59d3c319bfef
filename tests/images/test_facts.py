"""Results depend on what the images are: every change of them is seen, said in a line, and makes stages out of date."""

import inspect
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import run
import stages
from pipeline.components import build
from pipeline.datasets.base import MissingImages
from pipeline.images.facts import UsedImages, describe_change, split_facts
from pipeline.recipes.data import Data
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

RECIPE = """
name: tiny
data: {source: {kind: image_folder, path: images, held_out: 0.3}, size: 8}
tokenizer:
  model:
    kind: conv_autoencoder
    bottleneck: {kind: gaussian, dim: 2}
    width: 8
    multipliers: [1]
    blocks: 1
    groups: 4
    patch_size: 2
    middle_attention: false
  phases:
    main:
      weights: {pixel: 1.0, kl: 1.0e-4}
      loop: {steps: 2, batch: 4, lr: {tokenizer: 1.0e-3}}
generator:
  network: {kind: diffusion_transformer, depth: 1, width: 32, heads: 2, patch_size: 2}
  objective: {kind: flow_matching}
  weights: {flow: 1.0}
  loop: {steps: 2, batch: 4, lr: {network: 1.0e-3}}
sample: {images: 4, steps: 2, batch: 4}
evaluate: {features: [pixels]}
"""


def draw(folder, names, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / name)


def names(of="ab", count=10):
    return [f"{one}/{number}.bmp" for one in of for number in range(count)]


def source(path, **more):
    return Data({"kind": "image_folder", "path": str(path), "held_out": 0.3} | more, size=8)


def test_the_facts_of_a_split_are_its_counts_and_a_hash_of_its_images(tmp_path):
    draw(tmp_path / "images", names())
    train, held_out = (split_facts(source(tmp_path / "images"), split) for split in ("train", "held_out"))
    assert train.class_names == held_out.class_names == ("a", "b")
    assert train.images + held_out.images == 20 == sum(train.class_counts) + sum(held_out.class_counts)
    assert all(train.class_counts) and train.fingerprint != held_out.fingerprint
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    assert split_facts(source(tmp_path / "moved"), "train") == train


def test_one_changed_file_is_seen_in_its_split_alone(tmp_path):
    draw(tmp_path, names())
    data = source(tmp_path)
    used = UsedImages(data, ())
    file = tmp_path / names()[0]
    state, splits = file.stat(), ["train", "held_out"]
    held_out = map(str, build("datasets", data.source, split="held_out").files)
    mine, other = reversed(splits) if names()[0] in held_out else splits
    draw(tmp_path, names()[:1], seed=1)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    used.check_unchanged([other])
    with pytest.raises(ValueError, match=r"images have changed \(\d+ as then\) while this command ran; give it again"):
        used.check_unchanged([mine])


def test_a_finished_run_needs_its_images_no_more(tmp_path):
    draw(tmp_path / "images", names())
    note = {"images": UsedImages(source(tmp_path / "images"), ()).of(["train"])}
    shutil.rmtree(tmp_path / "images")
    used = UsedImages(source(tmp_path / "images"), [{}, note])
    assert used.of(["train"]) == note["images"] and used.of([]) == {}
    assert used.change_since([note]) is None
    for refused in (
        lambda: used.of(["held_out"]),
        lambda: used.check_unchanged(["train"]),
        lambda: UsedImages(source(tmp_path / "images"), [{}]),
    ):
        with pytest.raises(MissingImages, match="there is no folder"):
            refused()


def test_a_change_is_told_with_its_numbers():
    then = {"train": {"fingerprint": "x", "images": 20}, "held_out": {"fingerprint": "y", "images": 3}}
    now = {"train": {"fingerprint": "z", "images": 24}, "held_out": {"fingerprint": "y", "images": 3}}
    assert describe_change(then, now) == "the training images have changed (20 then, 24 now)"
    assert describe_change(then, then) is None and describe_change({}, now) is None


@pytest.fixture
def line(tmp_path, monkeypatch, capsys):
    """Runs commands on a tiny recipe in a folder of their own; returns status and output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    draw(tmp_path / "images", names())

    def command(*arguments):
        status = run.main([arguments[0], "tiny.yaml", *arguments[1:]])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return command


def test_every_stage_notices_that_images_were_added_removed_or_changed(line, tmp_path):
    for stage in ("train-tokenizer", "train-jointly", "encode-dataset"):
        assert line(stage)[0] == 0
    assert "is up to date" in line("encode-dataset")[1]
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    assert "is up to date" in line("encode-dataset", "data.source.path=moved")[1], "wherever the images lie"
    (tmp_path / "images").rename(tmp_path / "away")
    assert "is up to date" in line("encode-dataset")[1] and line("train-generator")[0] == 0, "none is looked at"
    assert "there is no folder" in line("encode-dataset", "latents.posterior=mode")[1]
    (tmp_path / "away").rename(tmp_path / "images")
    draw(tmp_path / "images", names("c"), seed=2)
    status, text = line("train-generator")
    assert status == 2 and "missing or out of date (the training images have changed" in text
    assert "up to date\n" not in text
    status, text = line("train-tokenizer")
    assert status == 0 and "runs/tiny/tokenizer (the training images have changed (" in text
    for image in (tmp_path / "images/c").iterdir():
        image.unlink()
    (tmp_path / "images/c").rmdir()
    assert "(the training images have changed (" in line("train-tokenizer")[1]


def test_nothing_is_written_where_the_images_are_wrong(line, tmp_path):
    for folder in ("train/a", "val/a", "val/c"):
        draw(tmp_path / "split" / folder, ["1.png", "2.png"])
    status, text = line("all", "data.source.path=split")
    assert status == 2 and "split/val/c" in text
    assert line("all", "data.source.path=nowhere")[0] == 2
    assert not (tmp_path / "runs").exists()


def test_images_that_change_between_two_stages_of_a_command_stop_it(line, tmp_path, monkeypatch):
    save = ConvAutoencoder.save_pretrained

    def change(*arguments, **options):
        draw(tmp_path / "images", names(), seed=3)
        return save(*arguments, **options)

    monkeypatch.setattr(ConvAutoencoder, "save_pretrained", change)
    status, text = line("all")
    assert status == 2 and "images have changed (16 as then) while this command ran; give it again" in text
    assert not (tmp_path / "runs/tiny/joint").exists()


@pytest.mark.parametrize("stage", stages.table(), ids=lambda stage: stage.name)
def test_stages_state_the_splits_that_they_open(stage):
    """The training images may stand in the codes that a stage reads, which are compared with them."""
    calls = re.findall(r'Images\(recipe.data, "(\w+)"\)', inspect.getsource(stages.load(stage.name)))
    through_codes = {"train"} if "latents" in stage.reads else set()
    assert set(calls) <= set(stage.images) | through_codes


def test_a_half_made_draft_is_not_continued_on_other_images(line, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ConvAutoencoder, "save_pretrained", stop)
        assert line("train-tokenizer")[0] == 130
    (draft,) = (tmp_path / "runs/tiny").glob(".tokenizer-*")
    assert list(draft.rglob("checkpoints/*"))
    draw(tmp_path / "images", names()[:10], seed=1)
    assert line("train-tokenizer")[0] == 0
    made = json.loads((tmp_path / "runs/tiny/tokenizer/made_from.json").read_text())
    assert draft.name != f".tokenizer-{made['hash']}"
