"""docs/extending.md is followed to the letter in a copy of the tree: all that it adds is found, used and shown."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text()
FILES = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.M | re.S))
LINES = re.findall(r"^In `([\w/.]+)`, after `([^`]+)`:\n\n```\n(.*?)```", PAGE, re.M | re.S)
QUICK = (
    *("tokenizer.phases.main.loop.steps=3", "tokenizer.phases.main.loop.batch=8", "generator.loop.steps=3"),
    *("generator.loop.batch=8", "sample.images=20", "sample.steps=3", "evaluate.images=40"),
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files and lines of the page."""
    tree = tmp_path_factory.mktemp("extended")
    for name in ("pipeline", "stages", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "run.py", tree / "run.py")
    for name, text in FILES.items():
        assert not (tree / name).exists(), f"{name} is there already"
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    for name, line, added in LINES:
        head, found, tail = (tree / name).read_text().partition(f"{line}\n")
        assert found, f"{name} has no line that ends in {line}"
        (tree / name).write_text(head + found + added + tail)
    return tree


def run(tree: Path, *words: str) -> str:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "run.py", *words]
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_each_thing_costs_as_many_files_as_the_page_says():
    slots = [name.split("/")[1] for name in FILES if name.startswith("pipeline/")]
    once = ("perturbations", "tokenizers", "objectives", "solvers", "frozen", "commands")
    assert {slot: slots.count(slot) for slot in slots} == dict.fromkeys(once, 1) | {"losses": 2, "metrics": 2}
    assert {name for name, _, _ in LINES} == {"stages/__init__.py", "pipeline/commands/__init__.py"}


def test_help_and_description_name_all_of_it(tree: Path):
    help_text = run(tree, "--help")
    assert "contact-sheet RECIPE" in help_text and "  sizes RUN" in help_text
    described = run(tree, "describe")
    kinds = [Path(name).stem for name in FILES if re.match(r"pipeline/(?!frozen|commands)", name)]
    assert kinds and not [kind for kind in kinds if f"  {kind} " not in described]


@pytest.mark.slow
def test_a_recipe_of_it_runs_to_its_report(tree: Path):
    run(tree, "all", "extended", *QUICK)
    made = tree / "runs/extended"
    numbers = json.loads((made / "report/metrics.json").read_text())
    assert "sharpness" in numbers
    assert "Sharpness" in (made / "report/index.html").read_text()
    assert (made / "sheet/sheet.png").is_file()
    assert "generator" in run(tree, "sizes", "extended")
    run(tree, "card", "extended", "prior_steps=1")
    assert "latent_range" in json.loads((made / "card/card.json").read_text())["numbers"]
    assert "Largest value" in (made / "card/index.html").read_text()
