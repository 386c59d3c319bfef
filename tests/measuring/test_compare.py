"""A comparison puts beside each other what was measured alike, and says of the rest why it was not."""

import json
import re
from pathlib import Path

import pytest

import run
from pipeline.measuring.comparison import (
    choose_aim,
    compare_number,
    compare_numbers,
    correlations,
    measurement,
    read_runs,
)
from pipeline.recipes.schema import load, settings
from pipeline.reporting.comparison_page import best_runs, group_letters

STAGES = ("tokenizer", "joint", "latents", "generator", "decoder")


def number(value: float, better: str = "lower", sha: str = "f1", images: int = 359, group: str = "Samples") -> dict:
    protocol = {
        "images": f"{images} samples",
        "features": {"kind": "classifier", "weights_sha256": sha},
        "sampling": {"steps": 25},
        "versions": {"torch": "2"},
    }
    return {"title": "T", "value": value, "better": better, "meaning": "m", "protocol": protocol, "group": group}


def make_run(root: Path, name: str, seconds: float = 10.0, **numbers: dict) -> Path:
    """A run's folder as far as a comparison reads it."""
    folder = root / name
    (folder / "report").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(f"# configs/digits.yaml\n{settings(load('digits', [f'name={name}']))}")
    (folder / "report" / "metrics.json").write_text(json.dumps(numbers))
    for stage in STAGES:
        (folder / stage).mkdir()
        (folder / stage / "made_from.json").write_text(json.dumps({"seconds": seconds / 5, "device": "cpu"}))
    return folder


def test_protocols_are_the_same_or_the_numbers_are_not_comparable():
    alike = compare_number("fd", [number(1.0), number(2.0), None, number(0.5)])
    assert alike.groups == [[0, 1, 3]] and not alike.differs and not group_letters(alike) and best_runs(alike) == {3}
    other = compare_number("fd", [number(9.0, sha="f2"), number(2.0), number(1.0), number(0.1, images=60)])
    assert other.groups == [[1, 2], [0], [3]] and group_letters(other) == {0: "a", 3: "b"} and best_runs(other) == {2}
    assert other.differs == {
        "images": ["359 samples", "359 samples", "60 samples"],
        "features.weights_sha256": ["f1", "f2", "f1"],
    }


def test_how_a_run_sampled_and_its_versions_are_not_how_it_was_measured():
    assert measurement(number(1.0)["protocol"]) == {
        "images": "359 samples",
        "features.kind": "classifier",
        "features.weights_sha256": "f1",
    }


def test_ranks_are_of_comparable_runs_and_know_which_way_is_better(tmp_path):
    for place, (distance, psnr, sha) in enumerate([(1.0, 30.0, "f1"), (2.0, 25.0, "f1"), (3.0, 20.0, "f1")]):
        make_run(tmp_path, f"r{place}", fd_x=number(distance, sha=sha), psnr=number(psnr, "higher", ""))
    make_run(tmp_path, "other", fd_x=number(0.1, sha="f2"), psnr=number(1.0, "higher", ""))
    runs = read_runs([str(tmp_path / name) for name in ("r0", "r1", "r2", "other")])
    lines = compare_numbers(runs)
    aim = choose_aim(lines, None)
    (entry,) = (entry for entry in correlations(lines, lines[aim]) if entry["key"] == "psnr")
    assert aim == "fd_x" and entry["rank"] == pytest.approx(1) and entry["runs"] == [0, 1, 2]
    assert "training_time" not in [e["key"] for e in correlations(lines, lines[aim])], "it is the same for all"
    few = compare_numbers(runs[:2])
    assert correlations(few, few["fd_x"]) == []


def test_other_images_are_another_reference(tmp_path):
    one, other = make_run(tmp_path, "one", fd_x=number(1.0)), make_run(tmp_path, "other", fd_x=number(1.0))
    text = (other / "recipe.yaml").read_text()
    assert text.count("size: 16") == 1
    (other / "recipe.yaml").write_text(text.replace("size: 16", "size: 32"))
    lines = compare_numbers(read_runs([str(one), str(other)]))
    assert lines["fd_x"].groups == [[0], [1]] and lines["fd_x"].differs == {"data.size": ["16", "32"]}


def test_images_that_changed_in_the_same_place_are_other_images(tmp_path):
    runs = [make_run(tmp_path, name, fd_x=number(1.0)) for name in ("one", "same", "changed")]
    for run_, held_out in zip(runs, ("x", "x", "y")):
        images = {"train": {"fingerprint": "t", "images": 9}, "held_out": {"fingerprint": held_out, "images": 3}}
        (run_ / "report/made_from.json").write_text(json.dumps({"images": images}))
    line = compare_numbers(read_runs(list(map(str, runs))))["fd_x"]
    assert line.groups == [[0, 1], [2]] and line.differs == {"data.held_out images": ["x", "y"]}


def test_the_page_marks_what_is_not_comparable_and_asks_nobody(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for place in range(3):
        sha = "f1" if place else "f2"
        numbers = {"fd_classifier": number(1.0 + place, sha=sha), "psnr": number(30.0 + place, "higher")}
        folder = make_run(tmp_path / "runs", f"r{place}", 10.0 * (place + 1), **numbers)
        (folder / "card").mkdir()
        card = {"numbers": {"cknna": number(0.1 * place, "higher", group="Meaning")}}
        (folder / "card" / "card.json").write_text(json.dumps(card))
    assert run.main(["compare", "r0", "runs/r1", "r2", "out=side"]) == 0, capsys.readouterr().err
    page, text = (tmp_path / "side" / name for name in ("index.html", "comparison.md"))
    page, found = page.read_text(), json.loads((tmp_path / "side" / "comparison.json").read_text())
    assert found["numbers"]["fd_classifier"]["comparable"] == [["r1", "r2"], ["r0"]]
    assert found["numbers"]["cknna"]["group"] == "Card: Meaning"
    assert found["rank_correlation"]["with"] == "fd_classifier"
    assert re.search(r"<td class=apart><data value=\"1.0\">1.000</data><sup>a</sup>", page)
    assert "features.weights sha256 differ" in page and "1.000 (a)" in text.read_text()
    assert page.count('src="data:image/png;base64,') == 2, "training time, reconstruction"
    assert not re.search(r"https?://|@import|url\(|<script|<link", page)
    assert run.main(["compare", "r0", "r1", "out=runs"]) == 2 and "not a comparison" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/r0"], "two runs or more"),
        (["r0", "nowhere"], "nowhere is no run"),
        (["r0", "r0", "by=fid"], "no run has such a number"),
        (["r0", "r0", "oot=x"], "oot: there is no such setting"),
    ],
)
def test_mistakes_are_said_in_a_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", "r0", fd_x=number(1.0))
    assert run.main(["compare", *words]) == 2
    assert message in capsys.readouterr().err
