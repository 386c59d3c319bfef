"""Trackers are told what a training logs and shows, and one that fails ends no training."""

import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, register_tracker_class
from support.loop_task import fit, weights

from pipeline.checks.recipe import check_recipe
from pipeline.recipes.schema import load
from pipeline.runs.machine import accelerate


class Notes(GeneralTracker):
    """Keeps what it is told."""

    name, requires_logging_directory = "notes", True
    told: list = []
    fails_at: int | None = None

    def __init__(self, project, folder):
        super().__init__()
        self.told.append(("begin", project, folder))

    @property
    def tracker(self):
        return self.told

    def store_init_configuration(self, values):
        assert all(isinstance(value, (int, float, str)) for value in values.values())
        if self.fails_at == 0:
            raise ConnectionError("nobody\nanswers")

    def log(self, values, step=None, **options):
        if step == self.fails_at:
            raise ConnectionError("the line is dead")
        self.told.append((step, values))

    def log_images(self, values, step=None, **options):
        self.told.append((step, {name: pixels.shape for name, pixels in values.items()}))

    def finish(self):
        self.told.append("end")


@pytest.fixture()
def notes(monkeypatch) -> type[Notes]:
    register_tracker_class(Notes)
    monkeypatch.setattr(Notes, "told", [])
    yield Notes
    LOGGER_TYPE_TO_CLASS.pop("notes")


def test_values_and_pictures_are_told_step_by_step(notes, tmp_path):
    check_recipe(load("digits", ["trackers=[notes]"]))
    accelerator = accelerate(["notes"], tmp_path)
    told = fit(tmp_path, accelerator=accelerator, log_every=6, preview_every=12)
    begin, first, last, picture, seen, end = notes.told
    assert begin == ("begin", "training", str(tmp_path / "trackers")) and end == "end"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line.pop("step"), line) for line in lines] == [first, last]
    assert picture == (12, {"preview": (1, 8, 8, 3)}) and seen[1].keys() == {"held_out", "held_out_train"}
    assert not accelerator.trackers, "the next training begins its own"
    assert torch.equal(weights(told), weights(fit(tmp_path / "untold")))


def test_a_tracker_that_dies_is_said_and_the_training_goes_on(notes, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Notes, "fails_at", 6)
    fit(tmp_path, accelerator=accelerate(["notes"], tmp_path), log_every=3)
    assert [step for step, _ in notes.told[1:]] == [3]
    assert caplog.text.count("the tracker notes is told nothing more, since it failed: the line is dead") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_tracker_that_cannot_begin_is_one_line_before_the_first_step(notes, tmp_path, monkeypatch):
    monkeypatch.setattr(Notes, "fails_at", 0)
    with pytest.raises(ValueError, match=r"could not begin \(nobody answers\); mend it, or set trackers=\[\]$"):
        fit(tmp_path, accelerator=Accelerator(cpu=True, log_with=["notes"], project_dir=str(tmp_path)))


def test_tensorboard_reads_what_was_logged(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(tmp_path, accelerator=accelerate(["tensorboard"], tmp_path), log_every=6, preview_every=12)
    read = events.EventAccumulator(str(tmp_path / "trackers" / "training"))
    read.Reload()
    assert [event.step for event in read.Scalars("maker/square")] == [6, 12]
    assert [event.step for event in read.Images("preview")] == [12]
