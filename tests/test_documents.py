"""What README and docs/ tell people to type is right: commands, settings, recipes, files, links and snippets."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from support.captioned_pipeline import make_text_pipeline
from support.tiny_pipeline import make_pipeline

from pipeline.checks.recipe import check_recipe
from pipeline.commands import COMMANDS
from pipeline.planning.summary import CheckSettings
from pipeline.recipes.describing import describe
from pipeline.recipes.files import is_recipe
from pipeline.recipes.schema import load
from stages import ORDER

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in DOCUMENTS}
BLOCKS = [
    (name, kind, block) for name, text in TEXTS.items() for kind, block in re.findall(r"```(\w*)\n(.*?)```", text, re.S)
]
LINES = [line.split(" #")[0].strip() for _, kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
TYPED = sorted({re.search(r"run\.py (.*)", line)[1] for line in LINES if "run.py" in line})
NEW = set(re.findall(r"^`([\w/.]+)`:$", TEXTS["docs/extending.md"], re.M))  # files that a reader of that page writes
PYTHON = {name: [block for page, kind, block in BLOCKS if (page, kind) == (name, "python")] for name in TEXTS}
SNIPPETS = {name: "\n".join(blocks) for name, blocks in PYTHON.items() if "from_pretrained" in "".join(blocks)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pipeline that pages start from."""
    folder = tmp_path_factory.mktemp("place")
    pipe = make_pipeline(num_classes=10, id2label={i: str(i) for i in range(10)})
    pipe.save_pretrained(folder / "runs/digits/pipeline")
    return folder


@pytest.mark.parametrize("words", TYPED)
def test_commands_are_ones_that_run(words: str, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    command, *rest = words.split()
    others = [other.name for other in COMMANDS if other.name != "check"]
    if command == "describe":
        assert all(describe(name) for name in rest)
    assert command.replace("-", "_") in ("all", "check", *others, *ORDER)
    if rest and (command == "sample" or command not in others) and is_recipe(rest[0]):
        own = {field.name for field in fields(CheckSettings)} if command == "check" else ()
        check_recipe(load(rest[0], [word for word in rest[1:] if word.partition("=")[0] not in own]))


def test_make_targets_exist():
    targets = {target for line in LINES for target in re.findall(r"^make ([a-z-]+)", line)}
    known = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()
    assert targets and targets <= set(known)


@pytest.mark.parametrize("name", TEXTS)
def test_files_and_links_exist(name: str):
    for path in set(re.findall(r"`((?:pipeline|stages|configs|benchmarks|tests|docs)/[\w/.]*)`", TEXTS[name])):
        assert (ROOT / path).exists() or path in NEW, path
    for link in set(re.findall(r"\]\(([^)#:]+)\)", TEXTS[name])):
        assert (ROOT / name).parent.joinpath(link).exists(), link


def test_every_recipe_has_a_row_in_the_table():
    rows = {row[1] for row in re.finditer(r"^\| `(\w+)` \|", TEXTS["docs/recipes.md"], re.M)}
    assert rows == {path.stem for path in ROOT.glob("configs/*.yaml")}


def test_recipes_that_a_page_shows_are_right(tmp_path: Path):
    recipes = [block for name, kind, block in BLOCKS if kind == "yaml" and name != "docs/extending.md"]
    assert recipes
    for number, recipe in enumerate(recipes):
        (tmp_path / f"{number}.yaml").write_text(recipe)
        check_recipe(load(str(tmp_path / f"{number}.yaml")))


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_run_as_they_stand(name: str, tmp_path: Path):
    make_pipeline(num_classes=10, id2label={i: str(i) for i in range(10)}).save_pretrained(
        tmp_path / "runs/digits/pipeline"
    )
    make_text_pipeline().save_pretrained(tmp_path / "runs/emoji32_text/pipeline")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", SNIPPETS[name]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    if name == "README.md":
        assert len(list(tmp_path.glob("*.png"))) == 4
