"""The judge: a function of its images and seed, trained once, and copied where all that it is made from is the same."""

from functools import partial

import pytest
import torch

from pipeline.components import structure
from pipeline.features import judge
from pipeline.features.judge import NOTE, fit_judge
from pipeline.images.reading import Images
from pipeline.recipes.data import Data
from pipeline.teachers.classifier import fit

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(judge, "fit", partial(fit, steps=2))


def digits(size: int = 16) -> Images:
    return Images(structure(Data, {"source": {"kind": "digits"}, "size": size}), "train")


def made(folder, images: Images, seed: int = 0, earlier=None) -> bytes:
    fit_judge(images, seed, torch.device("cpu"), folder, earlier)
    return (folder / WEIGHTS).read_bytes()


def test_it_is_copied_where_it_was_made_from_the_same_and_trained_anew_elsewhere(tmp_path, monkeypatch):
    first = made(tmp_path / "first", digits())
    assert made(tmp_path / "again", digits()) == first, "a function of its arguments"

    def never(*of, **more):
        raise AssertionError("trained anew")

    monkeypatch.setattr(judge, "fit", never)
    assert made(tmp_path / "copy", digits(), earlier=tmp_path / "first") == first
    assert (tmp_path / "copy" / NOTE).read_text() == (tmp_path / "first" / NOTE).read_text()
    for images, seed in ((digits(), 1), (digits(8), 0)):
        with pytest.raises(AssertionError, match="anew"):
            made(tmp_path / "other", images, seed, tmp_path / "copy")
    (tmp_path / "copy" / NOTE).unlink()
    with pytest.raises(AssertionError, match="anew"):
        made(tmp_path / "other", digits(), earlier=tmp_path / "copy")
