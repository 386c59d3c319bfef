"""Imports point one way: a room of the house imports the rooms before it, and nothing grows past its limit."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.components import SLOTS

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/*.py"), ROOT / "run.py"])
TAKEN = {"dit", "flux", "sana", "latte", "wan", "prx", "ddpm", "amused", "kandinsky", "shap_e", "unidiffuser"}

# Modules and packages of pipeline/, then the entry points: each may import those before it, and none after it.
ROOMS = (
    *("program", "files", "code", "draws", "validation", "ranges", "written", "components"),
    *("stored_weights", "saved_folders", "saved_pipeline"),
    *("nn", "vision", "language", "samplers", "solvers"),
    *(
        "datasets",
        "text_encoders",
        "bottlenecks",
        "teachers",
        "critics",
        "adversarial",
        "optimizers",
        "tokenizers",
        "networks",
        "objectives",
        "similarities",
        "transplants",
    ),
    *("perturbations", "losses", "call_arguments", "prompts", "recipes", "captions", "images", "features", "metrics"),
    *("runs", "frozen", "latents"),
    *("editing", "adapters", "latent_pipeline", "pipeline", "sampling", "checks", "training", "planning"),
    *("measuring", "reporting", "publishing"),
    *("published", "commands", "stages", "run"),
)
PARAMETERS = 7  # of a function that is no constructor, `self` apart
FUNCTION_LINES = 46
FILE_LINES = 350


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def ours(path: Path) -> set[str]:
    return {module for module in imports(path) if module.split(".")[0] in ("pipeline", "stages", "run")}


def room(module: str) -> str:
    """The module or package of pipeline/ that a dotted name lies in; of a file outside of it, its first name."""
    first, *rest = module.split(".")
    return rest[0] if first == "pipeline" and rest else first


def test_every_room_has_its_place():
    there = {room(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in SOURCES}
    assert there - {"__init__"} | {"pipeline"} == set(ROOMS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts)).replace("__init__", "pipeline")
    for other in {room(module) for module in ours(path) if module != "pipeline"}:
        if other != own and other in ROOMS:
            assert ROOMS.index(other) < ROOMS.index(own), f"{own} comes before {other} and imports it"


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
    tasks = {"reconstruction", "generation", "joint", "posttraining", *SLOTS}
    assert not [m for m in ours(ROOT / "pipeline/training/loop.py") if set(m.split(".")) & tasks]


def test_codes_draws_and_workspace_import_nothing_of_ours():
    for name in ("code", "draws", "runs/workspace"):
        lowest = ("program", "files", "runs.lock", "runs.processes", "runs.sharding")
        lowest = tuple(f"pipeline.{name}" for name in lowest)
        inside = {m for m in ours(ROOT / f"pipeline/{name}.py") if not m.startswith(lowest)}
        assert not inside, name


def test_no_module_bears_a_name_that_diffusers_or_nobody_can_load():
    for path in ROOT.glob("pipeline/**/*.py"):
        names = set(path.relative_to(ROOT).with_suffix("").parts)
        assert not names & {"utils", "misc", "common", "helpers", "models"}, path
        saved = path.parent.name not in ("published", "solvers")  # as a component, under its module's name
        assert not saved or not names & TAKEN, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for_and_swallows_nothing(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "a bare except"
        if isinstance(node, ast.keyword) and node.arg in ("strict", "weights_only"):
            harmless = isinstance(node.value, ast.Constant) and node.value.value is True
            assert harmless or node.arg == "strict" and path.name != "checkpoint.py", f"{node.arg} at {node.lineno}"


def test_nothing_is_unpickled():
    """`weights_only` is checked above; accelerate's own checkpoints, and pickles of numpy and Python, are not read."""
    unsafe = {"load_state", "save_state", "register_for_checkpointing", "allow_pickle"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", getattr(node, "arg", None))
            assert name not in unsafe, path
            called = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle"
            assert not called or node.attr == "UnpicklingError", path


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


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))


def parameters(function: ast.FunctionDef) -> int:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len([a for a in arguments if a.arg not in ("self", "cls")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_files_fit(path: Path):
    assert len(path.read_text().splitlines()) <= FILE_LINES
    for function in functions(path):
        assert function.end_lineno - function.lineno < FUNCTION_LINES, function.name


def test_functions_have_few_parameters():
    many = [
        f"{path.relative_to(ROOT)}: {function.name} has {parameters(function)}"
        for path in SOURCES
        for function in functions(path)
        if function.name != "__init__"
        and parameters(function) > PARAMETERS
        and (path.name, function.name) != ("latent_pipeline.py", "__call__")  # a user's interface, as diffusers has it
    ]
    assert not many, "\n".join(many)
