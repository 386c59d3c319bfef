"""What is left of a line: by logs, earlier runs and measured steps, and never of nothing."""

import json
import time

import pytest

from pipeline.planning.line_clock import LineClock
from pipeline.planning.line_progress import PlannedStage, TimeLeft, plan_line, read_progress, read_rate
from pipeline.recipes.schema import load
from pipeline.runs.machine import accelerate
from pipeline.runs.workspace import Workspace

NAMES = {"train_tokenizer": "tokenizer", "encode_dataset": "latents", "train_generator": "generator"}
STAGES = [PlannedStage(name, writes) for name, writes in NAMES.items()]


def note(run, artefact: str, **values) -> None:
    (run / artefact).mkdir(parents=True, exist_ok=True)
    (run / artefact / "made_from.json").write_text(json.dumps(values))


def log(folder, *rows: tuple[int, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, "rate": rate}) for step, rate in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def planned(run, *settings: str):
    steps = ["tokenizer.phases.main.loop.steps=100", "generator.loop.steps=400"]
    return plan_line(load("digits", [*steps, *settings]), STAGES, run)


def test_nothing_is_said_before_anything_was_measured(tmp_path):
    line = planned(tmp_path)
    assert line.left(tmp_path) is None
    line.stages[0].state = "running"
    assert line.left(tmp_path) is None, "no step is logged yet"


def test_a_running_training_goes_by_its_last_steps_and_the_rest_is_at_least(tmp_path):
    line = planned(tmp_path)
    line.stages[0].state = "running"
    log(tmp_path / "tokenizer" / "phases" / "main", (10, 1.0), (20, 2.0), (50, 6.0))
    left = line.left(tmp_path)
    assert left.seconds == pytest.approx(50 * (10 / 1 + 10 / 2 + 30 / 6) / 50)
    assert left.unknown == ("encode_dataset", "train_generator")
    assert left.describe() == "at least 20.0 s left; nothing is known yet of encode_dataset, train_generator"


def test_earlier_runs_count_by_steps(tmp_path):
    note(tmp_path, "tokenizer", seconds=30.0, steps=50)
    note(tmp_path, "latents", seconds=7.0)
    note(tmp_path, "generator", seconds=1.0)  # of an artefact that no training made
    line = planned(tmp_path)
    assert [stage.earlier for stage in line.stages] == [60.0, 7.0, None]
    line.stages[2].trainings[0].step_seconds = 0.5
    assert line.left(tmp_path) == TimeLeft(60 + 7 + 200)
    assert line.left(tmp_path).describe() == "about 4 min 27 s left"
    line.stages[0].state, line.stages[0].folder = "running", ".tokenizer-x"
    assert line.left(tmp_path).seconds == 267, "before the first logged step by the earlier run"
    line.stages[0].state = line.stages[2].state = "done"
    line.stages[1].state, line.stages[1].began = "running", time.time() - 5
    assert line.left(tmp_path).seconds == pytest.approx(2, abs=0.5)


def test_two_phases_are_two_trainings(tmp_path):
    recipe = load("imagenet256_titok_l32")
    line = plan_line(recipe, STAGES[:1], tmp_path)
    assert len(line.stages[0].trainings) == len(recipe.tokenizer.phases) > 1
    assert [one.inside for one in line.stages[0].trainings] == [f"phases/{name}" for name in recipe.tokenizer.phases]


def test_a_stage_that_passes_through_takes_no_time(tmp_path):
    line = plan_line(load("digits"), [PlannedStage("posttrain_decoder", "decoder", True)], tmp_path)
    assert line.stages[0].left(tmp_path) == 0.0 and line.left(tmp_path) is None


def test_the_rate_is_of_the_last_lines(tmp_path):
    assert read_rate(tmp_path / "none.jsonl") == (0, None)
    log(tmp_path, *((step, 1.0) for step in range(10, 110, 10)), *((step, 5.0) for step in range(110, 210, 10)))
    step, rate = read_rate(tmp_path / "metrics.jsonl")
    assert step == 200 and rate == pytest.approx(5.0)


def test_the_clock_writes_what_others_read_and_measures_once(tmp_path, monkeypatch):
    work, asked = Workspace(tmp_path, accelerate()), []

    def measure(places):
        asked.append(set(places))
        return {place: 0.25 for place in places}

    clock = LineClock(work, planned(tmp_path), measure)
    clock.begin("tokenizer", ".tokenizer-x")
    assert read_progress(tmp_path) is None, "the run is not this command's"
    work.claimed = "recipe"
    clock.begin("tokenizer", ".tokenizer-x")
    assert read_progress(tmp_path).stage("tokenizer").folder == ".tokenizer-x"
    note(tmp_path, "tokenizer", seconds=100.0, steps=100)
    assert clock.end("tokenizer") == "" and not asked, "it took no time"
    monkeypatch.setattr("pipeline.planning.line_clock.WORTH_MEASURING", 0.0)
    clock.begin("latents", ".latents-x")
    note(tmp_path, "latents", seconds=1.0)
    assert clock.end("latents") == "; about 1 min 40 s left" and asked == [{"generator"}]
    assert read_progress(tmp_path).stage("latents").state == "done"
    clock.end("latents")
    assert len(asked) == 1


def test_steps_that_do_not_fit_beside_a_run_are_left_unknown(tmp_path, monkeypatch):
    def measure(places):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("pipeline.planning.line_clock.WORTH_MEASURING", -1.0)
    clock = LineClock(Workspace(tmp_path, accelerate()), planned(tmp_path), measure)
    note(tmp_path, "tokenizer", seconds=1.0, steps=1)
    assert clock.end("tokenizer") == ""
