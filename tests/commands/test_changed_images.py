"""Cards, sweeps and statistics are of the images that they say, and refused once those have changed."""

from dataclasses import asdict

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from pipeline.commands.card import CardTarget, images_of_card
from pipeline.commands.reference import reference
from pipeline.commands.sweep import images_of_run
from pipeline.components import structure
from pipeline.features.statistics_file import check_reference
from pipeline.images.facts import UsedImages
from pipeline.measuring.card_networks import CardSettings
from pipeline.recipes.data import Data
from pipeline.recipes.schema import load
from pipeline.runs.workspace import Workspace

SOURCE = {"kind": "image_folder", "path": "images", "held_out": 0.3}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A run whose artefacts say that they were made of the images as they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / "images" / f"{number}.bmp")
    work = Workspace(tmp_path / "run", Accelerator(cpu=True))
    notes = UsedImages(Data(SOURCE, size=8), ()).of(["train"])
    for name, reads in (("tokenizer", []), ("generator", ["tokenizer"]), ("decoder", ["tokenizer"])):
        with work.publish(name, "cause", reads=reads, images=notes if name == "tokenizer" else {}):
            pass
    return work


def change(work):
    """Another image under the name of one that is trained on, of the same size."""
    images = Data(SOURCE, size=8)
    for number in range(12):
        before = UsedImages(images, ()).of(["train"])
        Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(f"images/{number}.bmp")
        if UsedImages(images, ()).of(["train"]) != before:
            return
    raise AssertionError("no image is of the training split")


def test_a_card_is_of_the_images_of_its_run_or_of_others_that_are_named(work):
    own = {"data": asdict(Data(SOURCE, size=8))}
    target = CardTarget("run", work.root / "tokenizer", work.root, None, own)
    settings = structure(CardSettings, own)
    before = images_of_card(target, settings, work.accelerator)
    change(work)
    with pytest.raises(ValueError, match=r"training images have changed \(\d+ as then\) since .*run was made; type"):
        images_of_card(target, settings, work.accelerator)
    others = structure(CardSettings, {"data": own["data"] | {"source": SOURCE | {"held_out": 0.31}}})
    assert images_of_card(target, others, work.accelerator) != before


def test_a_sweep_is_refused_when_its_run_is_of_other_images(work):
    recipe = load("digits", ["data.source={kind: image_folder, path: images, held_out: 0.3}", "data.size=8"])
    assert set(images_of_run(recipe, work)) == {"train", "held_out"}
    change(work)
    with pytest.raises(ValueError, match="the training images have changed .* since .*run was made"):
        images_of_run(recipe, work)


def test_statistics_are_refused_when_their_images_have_changed_and_not_when_they_are_away(work, tmp_path, capsys):
    reference(["images", "statistics.npz", "size=8", "features=[pixels]"])
    check_reference("statistics.npz", ("pixels",))
    change(work)
    with pytest.raises(ValueError, match="of 12 of images, train have changed since statistics.npz was made"):
        check_reference("statistics.npz", ("pixels",))
    (tmp_path / "images").rename(tmp_path / "away")
    check_reference("statistics.npz", ("pixels",))
