"""Metrics are a slot: what each states of itself, how they are chosen, and that a new one is one file."""

import importlib
import json
import re
from functools import partial
from pathlib import Path

import pytest
from support.tiny_pipeline import make_recipe, make_run, make_tokenizer

import pipeline.metrics
import run
from pipeline.components import find, kinds
from pipeline.features import judge
from pipeline.metrics.base import NEEDS, Metric, SampleMetric, TokenizerMetric, report_kinds, report_metrics
from pipeline.recipes.describing import describe
from pipeline.recipes.evaluation import Evaluation
from pipeline.recipes.schema import settings

EXTENDING = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.mark.parametrize("kind", kinds("metrics"))
def test_a_metric_states_its_numbers_and_what_it_needs(kind):
    cls = find("metrics", kind)
    assert issubclass(cls, (SampleMetric, TokenizerMetric)) and cls.needs <= set(NEEDS) and cls.group
    for quantity in cls.quantities:
        assert quantity.better in ("higher", "lower", "neither") and quantity.title and quantity.meaning
        assert not quantity.meaning.endswith("."), "the page adds it"
        assert quantity.meaning.replace("{}", "NAME") in describe(f"metrics.{kind}")


def test_no_two_metrics_share_a_key_or_a_position():
    classes = [find("metrics", kind) for kind in kinds("metrics")]
    keys = [quantity.key for cls in classes for quantity in cls.quantities]
    assert len(set(keys)) == len(keys) and len({cls.order for cls in classes}) == len(classes)


def test_a_report_has_all_metrics_or_those_that_are_named():
    def chosen(**settings) -> list[str]:
        return [type(metric).__name__ for metric in report_metrics(Evaluation(**settings), Metric)]

    assert chosen() == [find("metrics", kind).__name__ for kind in report_kinds() if kind != "perturbed_frechet"]
    assert set(chosen(perturbed=True)) - set(chosen()) == {"PerturbedFrechet"}
    assert chosen(metrics=("psnr", "kernel_distance")) == ["KernelDistance", "PSNR"], "in the order of the report"
    (metric,) = report_metrics(Evaluation(metrics=("precision_recall",), neighbours=7), SampleMetric)
    assert metric.neighbours == 7


@pytest.mark.parametrize("name, message", [("kernel_distanse", "did you mean 'kernel_distance'"), ("speed", "there")])
def test_a_metric_that_a_report_does_not_have_is_refused_before_anything_runs(name, message, capsys):
    assert run.main(["check", "digits", f"evaluate.metrics=[{name}]"]) == 2
    assert f"evaluate.metrics: there is no metric '{name}'; {message}" in capsys.readouterr().err


@pytest.fixture
def written(tmp_path, monkeypatch) -> list[str]:
    """The kinds of the metrics that docs/extending.md writes, as files of the slot."""
    folder = tmp_path / "more"
    folder.mkdir()
    files = re.findall(r"`pipeline/metrics/(\w+)\.py`:\n\n```python\n(.*?)```", EXTENDING.read_text(), re.DOTALL)
    for kind, text in files:
        (folder / f"{kind}.py").write_text(text)
    monkeypatch.setattr(pipeline.metrics, "__path__", [*pipeline.metrics.__path__, str(folder)])
    importlib.invalidate_caches()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "fit", partial(judge.fit, steps=4, batch=16))
    return [kind for kind, _ in files]


def test_a_new_metric_is_one_file(written, tmp_path, capsys):
    assert written == ["sharpness", "latent_range"]
    assert all(re.search(rf"^  {kind} +\w+", describe(), re.MULTILINE) for kind in written)
    assert "mean difference of neighbouring pixels" in describe("sharpness")
    recipe = make_recipe(evaluate={"images": 13, "metrics": ["sharpness", "frechet_distance"]})
    work = make_run(tmp_path / "runs" / "tiny")
    (work.root / "recipe.yaml").write_text(f"# tiny\n{settings(recipe)}")
    assert run.main(["sweep", "tiny", "guidance=[1]", "steps=[2]", "images=13"]) == 0, capsys.readouterr().err
    (point,) = json.loads(Path("runs/tiny/sweep/sweep.json").read_text())["points"]
    assert set(point["numbers"]) == {"sharpness", "fd_classifier", "fd_pixels"}
    number = point["numbers"]["sharpness"]
    assert 0 < number["value"] < 2 and number["held_out"] > 0 and number["protocol"]["images"] == "13 samples"
    page = Path("runs/tiny/sweep/index.html").read_text()
    assert "Sharpness" in page and "Mean difference of neighbouring pixels." in page

    make_tokenizer().save_pretrained("imported")
    chosen = ["images=40", "metrics=[latent_range]"]
    assert run.main(["card", "imported", "data.source.kind=digits", "data.size=16", *chosen]) == 0
    card = json.loads(Path("imported/card/card.json").read_text())
    assert set(card["numbers"]) == {"latent_range"} and card["numbers"]["latent_range"]["group"] == "Latents"
    assert "Largest absolute value of a code." in Path("imported/card/index.html").read_text()
    assert run.main(["card", "imported", "data.source.kind=digits", "data.size=16", "metrics=[sharpness]"]) == 2
    assert "metrics: there is no metric 'sharpness'" in capsys.readouterr().err
