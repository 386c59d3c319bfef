"""What the README tells people to type is right: commands, settings, files and the snippet."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_pipeline import make_pipeline

from pipeline.checks.recipe import check_line
from pipeline.recipes.describing import describe
from pipeline.recipes.files import is_recipe
from pipeline.recipes.schema import load
from stages import ORDER

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
LINES = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
COMMANDS = [re.search(r"run\.py (.*)", line)[1].split() for line in LINES if "run.py" in line]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_ones_that_run(words):
    command, *rest = words
    others = ("import", "card", "sweep", "compare", "reference", "describe")
    if command == "describe":
        assert all(describe(name) for name in rest)
    assert command.replace("-", "_") in ("all", "check", "recipes", "doctor", *others, *ORDER)
    if rest and command not in others and is_recipe(rest[0]):
        check_line(load(rest[0], rest[1:]))


def test_make_targets_exist():
    targets = re.findall(r"make ([a-z-]+)", README)
    known = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()
    assert targets and set(targets) <= set(known)


def test_files_that_are_named_exist():
    for name in set(re.findall(r"`((?:pipeline|stages|configs|benchmarks|tests)/[\w/.]*)`", README)):
        assert (ROOT / name).exists(), name


def test_the_snippet_runs_as_it_stands(tmp_path):
    (snippet,) = [text for kind, text in BLOCKS if kind == "python"]
    make_pipeline(num_classes=10, id2label={i: str(i) for i in range(10)}).save_pretrained(
        tmp_path / "runs/digits/pipeline"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("*.png"))) == 4
