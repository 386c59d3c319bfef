"""A sweep samples the same seeds at every setting, measures each once, and goes on where it stopped."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from support.tiny_pipeline import make_recipe, make_run

import run
from pipeline.commands import sweep
from pipeline.features import judge
from pipeline.recipes.loops import Loop
from pipeline.recipes.post_training import PostTraining
from pipeline.recipes.schema import settings
from pipeline.recipes.tokenizer_training import Phase
from pipeline.reporting.sweep_page import best_points, common_entries, point_name, row_names
from pipeline.runs.milestones import milestone
from pipeline.sampling.many_images import assemble, plan_recipe, sample_images

SHORT = ["guidance=[1,2]", "steps=[2]", "images=13"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A run of an untrained pipeline in runs/tiny, and the calls that sample images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "fit", partial(judge.fit, steps=4, batch=16))
    recipe = make_recipe(evaluate={"images": 13})
    work = make_run(tmp_path / "runs" / "tiny")
    (work.root / "recipe.yaml").write_text(f"# tiny\n{settings(recipe)}")
    calls = []

    def counted(pipe, plan, out, accelerator):
        calls.append(out.name)
        sample_images(pipe, plan, out, accelerator)

    monkeypatch.setattr(sweep, "sample_images", counted)
    return work.root, recipe, calls


def read(folder) -> dict:
    return json.loads((folder / "sweep" / "sweep.json").read_text())


def test_every_setting_has_its_numbers_of_the_same_seeds(tiny, capsys):
    folder, recipe, calls = tiny
    assert run.main(["sweep", "tiny", *SHORT]) == 0, capsys.readouterr().err
    found = read(folder)
    assert [point["values"] for point in found["points"]] == [{"guidance": g, "steps": 2} for g in (1, 2)]
    assert [point["network_evaluations"] for point in found["points"]] == [2, 2]
    for point in found["points"]:
        made = point["numbers"]["fd_classifier"]["protocol"]["sampling"]
        assert made["guidance"]["scale"] == point["values"]["guidance"] and made["seeds"] == "0 + i"
        assert point["sampling"]["images"] == 13 and point["numbers"]["fd_pixels"]["held_out"] > 0
    one, two = (point["numbers"]["fd_pixels"]["value"] for point in found["points"])
    assert one != two
    text = (folder / "sweep" / "sweep.md").read_text()
    assert "| number | guidance 1, steps 2 | guidance 2, steps 2 | real held-out |" in text and "Precision" in text
    assert Image.open(folder / "sweep" / "grid.png").height > 2 * 64
    assert "| number" in text and (folder / "sweep" / "distance.png").exists()
    assert sorted(path.name for path in (folder / "sweep").iterdir() if path.is_dir()) == ["judge", "points"]
    note = json.loads((folder / "sweep" / "made_from.json").read_text())
    assert note["versions"]["torch"] and note["seconds"] > 0

    pipe = assemble(recipe, folder / "decoder", folder / "generator")
    out = folder.parent / "alone"
    plan = plan_recipe(make_recipe(sample={"images": 13, "batch": 3}), pipe)
    pipe.defaults = type(pipe.defaults)(2, type(pipe.defaults.guidance)(2.0), {})
    sample_images(pipe, plan, out, Accelerator(cpu=True))
    (point,) = [p for p in (folder / "sweep" / "points").iterdir() if scale(p) == 2]
    images = [[np.asarray(Image.open(place / f"{i:06d}.png")) for i in range(12)] for place in (point, out)]
    assert np.array_equal(*images), "the second row of the grid is what sampling at this scale gives"


def scale(point) -> float:
    return json.loads((point / "numbers.json").read_text())["sampling"]["guidance"]["scale"]


def test_what_is_finished_is_not_made_again(tiny, capsys, monkeypatch):
    folder, _, calls = tiny
    measure = sweep.measure

    def stopped(point, *rest):
        if point.values["guidance"] == 2:
            raise KeyboardInterrupt
        measure(point, *rest)

    monkeypatch.setattr(sweep, "measure", stopped)
    assert run.main(["sweep", "tiny", *SHORT]) == 130 and not (folder / "sweep").exists()
    monkeypatch.setattr(sweep, "measure", measure)
    assert run.main(["sweep", "tiny", *SHORT]) == 0 and len(calls) == 3, "the first scale was kept"
    assert calls[1] == calls[2] and calls[0] != calls[1]
    assert run.main(["sweep", "tiny", *SHORT]) == 0 and "up to date" in capsys.readouterr().out and len(calls) == 3
    first = read(folder)["points"][0]
    assert run.main(["sweep", "tiny", "guidance=[1.5,1]", *SHORT[1:]]) == 0 and len(calls) == 4
    points = read(folder)["points"]
    assert [point["values"]["guidance"] for point in points] == [1.5, 1] and points[1] == first
    assert not list(folder.glob(".sweep*"))
    note = folder / "generator" / "made_from.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"hash": "1"}))
    assert run.main(["sweep", "tiny", "guidance=[1]", *SHORT[1:]]) == 0 and len(calls) == 5, "another generator"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is no run"),
        (["tiny", "guidance=[]"], "a sweep needs values"),
        (["tiny", "guidence=[1]"], "did you mean 'guidance'"),
        (["tiny", "sampler.sovler=[euler]"], "did you mean 'solver'"),
        (["tiny", "sampler.solver=[elder]"], "solver"),
    ],
)
def test_mistakes_are_said_in_a_line(tiny, capsys, words, message):
    assert run.main(["sweep", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_earlier_decoders_are_tried_beside_each_other(tiny, capsys):
    folder, recipe, _ = tiny
    phase = Phase(Loop(2, {"tokenizer": 1e-3}), {"pixel": 1.0}, train="decoder")
    part = PostTraining(phase, pairs=2, held_out=1, milestones=(1, 2))
    (folder / "recipe.yaml").write_text(settings(replace(recipe, posttrain=part)))
    for step in (1, 2):
        pipe = assemble(recipe, folder / "decoder", folder / "generator")
        pipe.tokenizer.last_layer.data.mul_(step)
        pipe.tokenizer.save_pretrained(milestone(folder / "decoder", step))
    words = ["guidance=[2]", "steps=[2]", "images=13"]
    assert run.main(["sweep", "tiny", *words, "decoders=[1,2]"]) == 0, capsys.readouterr().err
    points = read(folder)["points"]
    assert [point["values"]["decoder"] for point in points] == [1, 2]
    of_decoders = [point["numbers"]["fd_pixels"]["value"] for point in points]
    assert run.main(["sweep", "tiny", *words]) == 0, capsys.readouterr().err
    (kept,) = [point["numbers"]["fd_pixels"]["value"] for point in read(folder)["points"]]
    assert of_decoders[0] == kept != of_decoders[1]
    assert run.main(["sweep", "tiny", *words, "decoders=[3]"]) == 2
    assert "sample.decoder.step=3 is not kept by post-training" in capsys.readouterr().err


def test_combinations_are_all_tried_and_named(tiny):
    _, recipe, _ = tiny
    asked = sweep.SweepSettings(guidance={"scale": [1.0, 2.0]}, steps=(5,), sampler={"solver": ["euler", "heun"]})
    points = sweep.combine(recipe, asked, {})
    assert [point_name(point.values) for point in points] == [
        f"guidance {g}, steps 5, solver {s}" for g in (1, 2) for s in ("euler", "heun")
    ]
    of_rows = [{"values": point.values} for point in points]
    assert row_names(of_rows) == ["1 · euler", "1 · heun", "2 · euler", "2 · heun"]
    assert row_names(of_rows[::2]) == ["guidance 1", "guidance 2"] and row_names(of_rows[:1])[0].startswith(
        "guidance 1,"
    )
    assert points[3].recipe.sample.sampler == {"solver": "heun"} and points[3].recipe.sample.guidance.scale == 2
    assert len({point.key for point in points}) == 4
    faster = sweep.combine(recipe, sweep.SweepSettings(guidance={"scale": [1.0]}, batch=9), {})
    assert faster[0].key == sweep.combine(recipe, sweep.SweepSettings(guidance={"scale": [1.0]}), {})[0].key


def test_the_best_and_what_protocols_share():
    points = [{"numbers": {"x": {"value": value, "better": "lower"}}} for value in (2.0, 1.0, 1.0)]
    assert best_points(points, "x") == {1, 2} and best_points(points[1:], "x") == set()
    assert common_entries([{"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 2, "d": 4}}]) == {"a": 1, "b": {"c": 2}}
