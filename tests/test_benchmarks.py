"""Benchmarks keep up with what they measure: imports, calls and settings; the quick ones run at the smallest size."""

import ast
import functools
import importlib
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pipeline.checks.recipe import check_recipe
from pipeline.recipes import schema

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("benchmarks/*.py"))
MODULES = ("quality_runs", "trained_tokenizers")  # which other benchmarks import
COMMANDS = [path.stem for path in FILES if path.stem not in MODULES]
SMALLEST = {  # arguments of what runs in a second or two
    "autoencoder": "--threads 1 --size 16 --images 1 --runs 1 --width 32",
    "latent_reads": "--codes 100 --shard 60 --repeats 4 --batch 8",
    "checkpointing": "--shapes autoencoder --repeats 1 --batch 1",
    "dropout": "--images 2 --tokens 4 --width 8 --repeats 1",
    "reading": "--images 8 --size 32 --workers 0 1 --steps 2 --batch 4",
    "sampling": "--threads 1 --rounds 1 --steps 2 --images 1 --depth 1",
    "level_sampling": "--rounds 1 --levels 1 1 2 4 --images 1 --depth 1 --width 64 --heads 2 --vocab 16",
    "token_sampling": "--threads 1 --rounds 1 --tokens 4 --images 1 --depth 1 --width 64 --heads 2 --lengths 8 9",
}


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Benchmarks import each other by name; what they set for their whole process is set back."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with torch.set_grad_enabled(True):
        yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """The modules of this project that a file imports from, at its top or in a function, and each name it imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, "__name__") for name in node.names)


def execute(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(ROOT / "benchmarks" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    runpy.run_path(path, run_name="__main__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_exists(path: Path):
    for module, name in imports(path):
        if module.split(".")[0] in ("pipeline", "stages", "run"):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_answers_help(name: str, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        execute(name, ["--help"], monkeypatch)
    assert stop.value.code == 0 and capsys.readouterr().out.startswith(f"usage: {name}.py")


@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs_at_the_smallest_size(name: str, monkeypatch, capsys):
    execute(name, SMALLEST[name].split(), monkeypatch)
    assert re.search(r"\d\.\d|\d,\d", capsys.readouterr().out)


EXPERIMENTS = {  # all parts of a benchmark at one seed
    "alignment": lambda benchmark, folder: (["steps", "dimensions", "budget", "bands", "flow"], 1, folder),
    "posttraining": lambda benchmark, folder: (
        "digits",
        ["remedies", "control", "settings", "tokenizers"],
        benchmark.GENERATORS,
        benchmark.TOKENIZERS,
        1,
    ),
    "emoji_choices": lambda benchmark, folder: (["choices", "guidance"], 1, 0.5),
    "discrete_tokenizers": lambda benchmark, folder: discrete_tokenizers(benchmark, "digits"),
}


def discrete_tokenizers(benchmark: ModuleType, data: str) -> tuple:
    """With a step a second of every training."""
    found = benchmark.systems(data, [])
    assert len(found) > 4 and all(system.bits >= system.tokens for system in found)
    rates = {each.recipe: dict.fromkeys((*each.phases, *each.variants), 1.0) for each in found}
    return ["quality", "without"], found, rates, 1, 60


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_variants_of_every_experiment_are_recipes(name: str, monkeypatch, tmp_path):
    """One of those that give the same settings of the same recipe other values."""
    monkeypatch.setattr(schema, "read", functools.cache(schema.read))
    benchmark, checked = importlib.import_module(name), set()
    for experiment in benchmark.experiments(*EXPERIMENTS[name](benchmark, tmp_path)):
        for changes in experiment.variants.values():
            overrides = experiment.overrides_of(changes, quick=False)
            settings = experiment.recipe, *sorted(override.partition("=")[0] for override in overrides)
            if settings not in checked:
                check_recipe(schema.load(experiment.recipe, overrides))
            checked.add(settings)


def test_quick_leaves_two_steps_of_every_training():
    quality_runs = importlib.import_module("quality_runs")
    for name in ("digits_autoguidance", "digits_repae", "digits_robust_ar"):
        recipe = schema.load(name, quality_runs.quick_overrides(name))
        check_recipe(recipe)
        phases = [*recipe.tokenizer.phases.values(), *(task.phase for task in (recipe.joint, recipe.posttrain) if task)]
        assert {recipe.generator.loop.steps, *(phase.loop.steps for phase in phases)} == {2}


def test_rows_to_paste_keep_what_the_pages_say_of_a_recipe():
    small = importlib.import_module("small_recipes")
    result = {"recipe": "digits_rae", "psnr": 30.04, "class_accuracy": 0.9925, "fd_classifier": 0.3, "held_out": 0.2}
    result |= {
        "near_copies_classifier": 0.0,
        "seconds": 60.0,
        "seconds_of_stages": {"latents": 40.0, "generator": 60.0},
    }
    for page, row in (("docs/recipes.md", small.recipes_page_rows), ("README.md", small.readme_rows)):
        line = list(row([result]))[1]
        there = next(line for line in (ROOT / page).read_text().splitlines() if line.startswith("| `digits_rae` |"))
        assert line.count("|") == there.count("|") and line.split("|")[:4] == there.split("|")[:4]
        assert all(number in line for number in ("30.0 dB", "99.2 %", "1.50"))
    assert "| 100 s of one core | trained |" in list(small.recipes_page_rows([result]))[1]
