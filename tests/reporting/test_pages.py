"""Report, card, sweep and comparison in headless Chromium: no page is wider than a phone, and all can be printed."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.images.grids import reconstructions, samples_by_class
from pipeline.measuring.comparison import choose_aim, compare_numbers, correlations, read_runs
from pipeline.metrics.base import Measurement
from pipeline.recipes.schema import load, settings
from pipeline.reporting.card_page import draw_card, write_card_page
from pipeline.reporting.comparison_page import write_comparison
from pipeline.reporting.page import Picture
from pipeline.reporting.run_page import refresh_report, save_report
from pipeline.reporting.sweep_page import write_sweep
from pipeline.runs.finished import sha256_of_tokenizer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
PHONE, DESK = 390, 1100
MEASURE = """<script>onload = () => {
  const frames = [...document.querySelectorAll("iframe")];
  for (const frame of frames) for (const it of frame.contentDocument.querySelectorAll("details")) it.open = true;
  const widths = frames.map(frame => [frame.title, frame.contentDocument.documentElement.scrollWidth]);
  document.body.innerHTML = `<pre>${JSON.stringify(Object.fromEntries(widths))}</pre>`;
}</script>"""
PROTOCOL = {
    "images": "360 samples",
    "held_out": "359 real held-out images",
    "references": "1438 images of the training split",
    "features": {"kind": "classifier", "weights_sha256": "0123456789abcdef" * 4, "resize": "none", "width": 64},
    "sampling": {"steps": 25, "guidance": {"scale": 1.25, "interval": [0.0, 1.0]}, "sampler": {"solver": "unipc"}},
    "versions": {"torch": "2.13.0+cpu", "numpy": "2.4"},
}
TITLES = {
    "fd_classifier": ("Fréchet distance, classifier", "lower"),
    "precision_classifier": ("Precision, classifier", "higher"),
    "recall_classifier": ("Recall, classifier", "higher"),
    "psnr": ("PSNR", "higher"),
}
META = re.compile(r'<meta name="viewport"')
LINE = ("tokenizer", "joint", "latents", "generator", "decoder", "samples")


def numbers(scale: float = 1.0) -> dict[str, dict]:
    """Some numbers as files hold them, with long protocols."""
    found = {}
    for key, (title, better) in TITLES.items():
        number = Measurement(
            title, 0.123456789 * scale, better, "what is said of it " * 5, PROTOCOL, "", 0.1, 1.2 * scale
        )
        number.headline, number.details = True, {"a_detail_with_a_long_name_of_its_own": 0.25}
        found[key] = number.as_dict() | {"group": "Reconstructions" if key == "psnr" else "Samples"}
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page of every kind, of a run that nobody has trained."""
    root = tmp_path_factory.mktemp("runs")
    for name, scale in (("digits_with_a_name_that_is_rather_long", 1.0), ("other", 1.5), ("third", 2.5)):
        run = make_run(root / name, scale)
    run = root / "digits_with_a_name_that_is_rather_long"
    write_extras(run)
    refresh_report(run)
    runs = read_runs([str(path) for path in sorted(root.iterdir())])
    lines = compare_numbers(runs)
    aim = lines[choose_aim(lines, None)]
    (root / "comparison").mkdir()
    write_comparison(root / "comparison", runs, list(lines.values()), aim, correlations(lines, aim))
    found = {name: run / name / "index.html" for name in ("report", "card", "sweep")}
    return found | {"comparison": root / "comparison" / "index.html"}


def make_run(run: Path, scale: float) -> Path:
    (run / "report").mkdir(parents=True)
    (run / "decoder").mkdir()
    (run / "decoder" / "config.json").write_text("{}")
    recipe = load("digits", [f"name={run.name}"])
    (run / "recipe.yaml").write_text(f"# configs/digits.yaml\n{settings(recipe)}")
    notes = {name: {"seconds": 12.5 * scale, "hash": name, "device": "cpu", "command": "run.py " * 20} for name in LINE}
    for name, note in notes.items():
        (run / name).mkdir(exist_ok=True)
        (run / name / "made_from.json").write_text(json.dumps(note))
    (run / "report" / "metrics.json").write_text(json.dumps(numbers(scale)))
    pixels = np.random.default_rng(0).integers(0, 256, (120, 16, 16, 3), dtype=np.uint8)
    samples_by_class(pixels, np.arange(120) % 10, list("0123456789")).save(run / "report" / "samples.png")
    shown = [Picture("Samples", "Samples, each row one class.", run / "report" / "samples.png", True)]
    save_report(run / "report", recipe.name, "1438 training images " * 4, shown, notes, settings(recipe))
    refresh_report(run)
    return run


def write_extras(run: Path) -> None:
    """The card and the sweep of a run."""
    spec, data = {"grid": [4, 4], "dim": 8, "vocab": 0, "codebooks": 1}, {"source": {"kind": "digits"}, "size": 16}
    about = {
        "name": run.name,
        "tokenizer": "ConvAutoencoder",
        "parameters": 5,
        "code": spec,
        "settings": {"data": data},
    }
    about["sha256"] = sha256_of_tokenizer(run / "decoder")
    groups = {"Meaning": {"cknna": numbers()["psnr"] | {"group": "Meaning"}}}
    (run / "card").mkdir()
    images = torch.zeros(3, 3, 16, 16)
    reconstructions(images, images).save(run / "card" / "reconstructions.png")
    figures = draw_card({"power": [3.0, 2.0, 1.0], "residual": [0.3, 0.2, 0.1]}, run / "none", run / "card")
    (run / "card" / "card.json").write_text(json.dumps({"about": about, "numbers": groups["Meaning"]}))
    write_card_page(run / "card" / "index.html", about, groups, figures)
    points = []
    for place, scale in enumerate((1.0, 1.25, 1.5, 2.0, 3.0, 4.0)):
        folder = run / "sweep" / "points" / str(place)
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (16, 16), (10 * place, 20 * i, 0)).save(folder / f"{i:06d}.png")
        points.append(
            {"values": {"guidance": scale, "steps": 25}, "sampling": {"images": 3}, "numbers": numbers(scale)}
        )
    sweep = {"name": run.name, "made_of": {name: name for name in ("generator", "decoder")}, "points": points}
    (run / "sweep" / "sweep.json").write_text(json.dumps(sweep))
    write_sweep(run / "sweep", sweep, [run / "sweep" / "points" / str(place) for place in range(len(points))])


def chromium(*arguments: str) -> str:
    command = [CHROMIUM, *FLAGS, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def widths(pages: dict[str, Path], width: int, folder: Path) -> dict[str, int]:
    """How wide every page comes out, all its details open, in a frame of so many pixels."""
    frames = "".join(
        f'<iframe title={name} width={width} height=800 srcdoc="{escape(page.read_text())}"></iframe>'
        for name, page in pages.items()
    )
    (folder / "frames.html").write_text(f"<!doctype html><meta charset=utf-8><body>{frames}{MEASURE}</body>")
    found = chromium("--virtual-time-budget=20000", "--dump-dom", f"file://{folder}/frames.html")
    return json.loads(unescape(re.search(r"<pre>(.*?)</pre>", found)[1]))


def test_the_report_shows_card_and_sweep(pages):
    page = pages["report"].read_text()
    assert "<h2>Tokenizer card" in page and "<h2>Guidance sweep" in page
    assert all(META.search(path.read_text()) for path in pages.values())


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_no_page_is_wider_than_its_window(pages, width, tmp_path):
    assert widths(pages, width, tmp_path) == dict.fromkeys(pages, width)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_pages_can_be_seen_and_printed(pages, name, tmp_path):
    picture, paper = tmp_path / "page.png", tmp_path / "page.pdf"
    address = f"file://{pages[name]}"
    chromium(f"--screenshot={picture}", "--window-size=500,900", address)
    chromium(f"--print-to-pdf={paper}", "--no-pdf-header-footer", address)
    seen = np.asarray(Image.open(picture).convert("L"))
    assert seen.shape == (900, 500) and (seen < 100).mean() > 0.005, "there is something on it"
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 10_000
