"""What others wrote (names of classes, titles, units, keys, numbers) is text in every page and in Markdown."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_pipeline import make_pipeline, make_recipe

from pipeline.images.grids import reconstructions
from pipeline.measuring.comparison import choose_aim, compare_numbers, correlations, read_runs
from pipeline.metrics.base import Measurement
from pipeline.publishing.model_card import Facts, model_card
from pipeline.recipes.schema import load, settings
from pipeline.reporting.card_page import card_markdown, draw_card, write_card_page
from pipeline.reporting.comparison_page import write_comparison
from pipeline.reporting.markdown_text import markdown_text
from pipeline.reporting.page import Picture
from pipeline.reporting.run_page import refresh_report, save_report
from pipeline.reporting.sweep_page import write_sweep
from pipeline.runs.finished import sha256_of_tokenizer

ATTACKS = (
    "<img src=x onerror=alert(1)>",
    "x onmouseover=alert(1) y",
    "\"'><script>alert(1)</script>",
    "a | b\n\n# head\n[link](javascript:alert(1)) ![i](http://e.vil/x.png) `c` **b** $\\frac{1$",
)


class Page(HTMLParser):
    """What of a page could run, or be fetched."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [tag] if tag in ("script", "iframe", "object", "svg", "link") else []
        for name, value in attributes:
            outside = name in ("src", "href") and not (value or "").startswith(("data:", "#"))
            self.found += [(tag, name)] if name.startswith("on") or outside else []


def number(text: str, value: float, group: str) -> dict:
    protocol = {"images": text, "references": text, "features": {"kind": text, text: text}, text: {text: [text]}}
    found = Measurement(text, value, "lower", text, protocol, text, 0.1, 1.2)
    found.headline, found.details = True, {text: 0.25}
    return found.as_dict() | {"group": group}


def numbers(text: str, scale: float) -> dict[str, dict]:
    keys = (f"fd_{text}/../../../../x", "psnr", f"precision_{text}")
    return {key: number(text, scale * 2**place, text) for place, key in enumerate(keys)}


def make_run(run: Path, text: str, scale: float) -> None:
    for name in ("report", "decoder", "card"):
        (run / name).mkdir(parents=True)
    (run / "decoder" / "config.json").write_text("{}")
    (run / "recipe.yaml").write_text(f"# digits\n{settings(load('digits', [f'publish.license={text}']))}")
    notes = {name: {"seconds": 1.0, "hash": name, "command": text, "device": text} for name in ("generator", "decoder")}
    (run / "report" / "metrics.json").write_text(json.dumps(numbers(text, scale)))
    Image.new("RGB", (16, 16)).save(run / "report" / "samples.png")
    shown = [Picture(text, text, run / "report" / "samples.png")]
    save_report(run / "report", text, text, shown, notes, text)


def write_extras(run: Path, text: str) -> None:
    spec = {"grid": [4, 4], "dim": 8, "vocab": 0, "codebooks": 1}
    data = {"source": {"kind": text, "path": text}, "size": 16}
    about = {"name": text, "tokenizer": text, "parameters": 5, "code": spec, "settings": {"data": data, text: text}}
    about["sha256"] = sha256_of_tokenizer(run / "decoder")
    groups = {text: {f"x{text}": number(text, 1.0, text)}}
    reconstructions(torch.zeros(3, 3, 16, 16), torch.zeros(3, 3, 16, 16)).save(run / "card" / "reconstructions.png")
    (run / "card" / "card.json").write_text(json.dumps({"about": about, "numbers": groups[text]}))
    write_card_page(run / "card" / "index.html", about, groups, draw_card({}, run / "none", run / "card"))
    (run / "card" / "card.md").write_text(card_markdown(about, groups))
    points, folders = [], []
    for place in range(3):
        folders.append(run / "sweep" / "points" / str(place))
        folders[-1].mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folders[-1] / "000000.png")
        values = {f"sampler.{text}": float(place), "solver": text}
        points.append({"values": values, "sampling": {"images": 3}, "numbers": numbers(text, place + 1.0)})
    sweep = {"name": text, "made_of": {name: name for name in ("generator", "decoder")}, "points": points}
    (run / "sweep" / "sweep.json").write_text(json.dumps(sweep))
    write_sweep(run / "sweep", sweep, folders)


@pytest.mark.parametrize("text", ATTACKS, ids=("image", "attribute", "script", "markdown"))
def test_no_page_runs_or_fetches_what_others_wrote(text, tmp_path):
    root = tmp_path / "runs"
    for name, scale in (("one", 1.0), ("two", 1.5), ("three", 3.0)):
        make_run(root / name, text, scale)
    write_extras(root / "one", text)
    refresh_report(root / "one")
    lines = compare_numbers(runs := read_runs([str(root / name) for name in ("one", "two", "three")]))
    aim = lines[choose_aim(lines, None)]
    (tmp_path / "comparison").mkdir()
    write_comparison(tmp_path / "comparison", runs, list(lines.values()), aim, correlations(lines, aim))
    pages = [root / "one" / name / "index.html" for name in ("report", "card", "sweep")]
    for path in (*pages, tmp_path / "comparison" / "index.html"):
        page = Page()
        page.feed(path.read_text())
        assert not page.found, path
        assert "alert(1)" in path.read_text(), "the text itself is shown"
    drawn = [path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.png")]
    assert {parts[0] for parts in drawn} == {"runs", "comparison"} and not list(tmp_path.parent.glob("x*"))
    for path in (
        root / "one" / "card" / "card.md",
        root / "one" / "sweep" / "sweep.md",
        tmp_path / "comparison" / "comparison.md",
    ):
        check_markdown(path.read_text())


def check_markdown(text: str) -> None:
    assert "<img" not in text and "<script" not in text and not re.search(r"(?<!\\)\]\((javascript|http)", text)
    assert "\n# head" not in text
    for table in (block for block in text.split("\n\n") if block.startswith("|")):
        cells = [line.replace("\\|", "").count("|") for line in table.splitlines()]
        assert len(set(cells)) == 1, "a cell went over its border"


@pytest.mark.parametrize("text", ATTACKS, ids=("image", "attribute", "script", "markdown"))
def test_the_model_card_shows_names_as_they_are(text):
    pipe = make_pipeline(id2label=dict.fromkeys(range(4), text))
    source = {"kind": "image_folder", "path": text}
    recipe = make_recipe(data={"source": source, "size": 16}, publish={"license": text})
    provenance = {"generator": {"seconds": 1.0, "device": text, "precision": text}}
    card = model_card(recipe, pipe, Facts("runs/tiny/pipeline", numbers(text, 1.0), provenance, []))
    body = card.split("\n---\n", 1)[1]
    check_markdown(body)
    assert "alert(1)" in body


def test_markdown_text_is_one_line_and_keeps_words():
    assert markdown_text("a_b c-d 1 great white shark: 3.5") == "a_b c-d 1 great white shark: 3.5"
    assert markdown_text("_x_ a\n|b|") == "\\_x\\_ a \\|b\\|"
    assert markdown_text("<b>&") == "&lt;b&gt;&amp;"


def test_numbers_of_others_that_are_none_are_refused(tmp_path):
    for name, wrong in (("one", {}), ("two", {"value": "<b>"}), ("three", {"unit": ["x"]}), ("four", {"value": True})):
        make_run(tmp_path / name, "plain", 1.0)
        file = tmp_path / name / "report" / "metrics.json"
        file.write_text(json.dumps({key: it | wrong for key, it in json.loads(file.read_text()).items()}))
        if wrong:
            with pytest.raises(ValueError, match="is no measured number") as error:
                read_runs([str(tmp_path / "one"), str(tmp_path / name)])
            assert "\n" not in str(error.value)
    assert np.isfinite(read_runs([str(tmp_path / "one")] * 2)[0].numbers["psnr"]["value"])
