"""Imports point one way: run -> stages -> tasks -> slots -> nn, and what must stay apart stays apart."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.components import SLOTS

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/*.py"), ROOT / "run.py"])
TAKEN = {"dit", "flux", "sana", "latte", "wan", "prx", "ddpm", "amused", "kandinsky", "shap_e", "unidiffuser"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def ours(path: Path) -> set[str]:
    return {module for module in imports(path) if module.split(".")[0] in ("pipeline", "stages", "run")}


def test_the_pipeline_never_imports_stages():
    for path in ROOT.glob("pipeline/**/*.py"):
        assert not [m for m in ours(path) if m.startswith(("stages", "run"))], path


def test_stages_never_import_each_other():
    for path in ROOT.glob("stages/*.py"):
        assert not [m for m in ours(path) if m.startswith("stages")], path


@pytest.mark.parametrize("slot", SLOTS)
def test_files_of_a_slot_do_not_import_each_other(slot):
    for path in ROOT.glob(f"pipeline/{slot}/*.py"):
        inside = [m for m in ours(path) if m.startswith(f"pipeline.{slot}.")]
        assert not [m for m in inside if not m.startswith(f"pipeline.{slot}.base")], path


def test_objectives_do_not_know_networks_and_the_loop_no_task():
    for path in ROOT.glob("pipeline/objectives/*.py"):
        assert not [m for m in ours(path) if m.startswith(("pipeline.networks", "pipeline.tokenizers"))], path
    tasks = ("pipeline.reconstruction", "pipeline.generation", *(f"pipeline.{slot}" for slot in SLOTS))
    assert not [m for m in ours(ROOT / "pipeline/loop.py") if m.startswith(tasks)]


def test_what_objectives_share_knows_neither_slots_nor_tasks():
    tasks = ("pipeline.reconstruction", "pipeline.generation", "pipeline.latent_pipeline", "pipeline.training")
    for path in ROOT.glob("pipeline/samplers/*.py"):
        above = (*tasks, *(f"pipeline.{slot}" for slot in SLOTS))
        shared = "pipeline.objectives.base"
        assert not [m for m in ours(path) if m.startswith(above) and not m.startswith(shared)], path


def test_training_and_frozen_networks_do_not_know_what_measures_and_shows_them():
    for path in [*ROOT.glob("pipeline/training/*.py"), *ROOT.glob("pipeline/frozen/*.py"), ROOT / "pipeline/loop.py"]:
        above = ("pipeline.measuring", "pipeline.reporting", "pipeline.latent_pipeline", "pipeline.sampling")
        assert path.name == "pairs.py" or not [m for m in ours(path) if m.startswith(above)], path


def test_codes_and_workspace_import_nothing_of_ours():
    for name in ("code", "workspace", "draws"):
        inside = {m for m in ours(ROOT / f"pipeline/{name}.py") if not m.startswith("pipeline.file_modes")}
        assert not inside, name


def test_no_module_bears_a_name_that_diffusers_or_nobody_can_load():
    for path in ROOT.glob("pipeline/**/*.py"):
        names = set(path.relative_to(ROOT).with_suffix("").parts)
        assert not names & {"utils", "misc", "common", "helpers", "models"}, path
        assert path.parent.name == "published" or not names & TAKEN, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for_and_swallows_nothing(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "a bare except"
        if isinstance(node, ast.keyword) and node.arg in ("strict", "weights_only"):
            harmless = isinstance(node.value, ast.Constant) and node.value.value is True
            assert harmless or node.arg == "strict" and path.name != "checkpoint.py", f"{node.arg} at {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_signatures_are_typed(path):
    functions = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    for outer in functions:
        inner = (
            [n for n in outer.body if isinstance(n, ast.FunctionDef)] if isinstance(outer, ast.ClassDef) else [outer]
        )
        for function in inner:
            if function.name.startswith("_") and function.name != "__init__":
                continue
            arguments = [*function.args.args, *function.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            assert not bare, f"{outer.name}.{function.name}: {bare}"
