"""The built wheel works outside of the checkout: it holds the recipes and gives the command `tessera`."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from pipeline.recipes.files import names

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "run.py", "pipeline", "stages", "configs")


def call(*command: object, cwd: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since setuptools leaves its work beside the sources."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    build = ("pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", out, tree)
    done = call(sys.executable, "-m", *build, cwd=tree)
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def tessera(wheel, tmp_path_factory) -> Path:
    """The command in an environment of its own, which sees the packages of the tests' but not the checkout."""
    place = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", place, cwd=place)
    done = call(sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "--no-deps", wheel, cwd=place)
    assert done.returncode == 0, done.stderr
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    return place / "bin" / "tessera"


def test_every_recipe_and_module_is_in_the_wheel(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for name in ("pipeline", "stages") for path in ROOT.glob(f"{name}/**/*.py")}
    recipes = {f"pipeline/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/**/*.yaml")}
    assert modules | recipes | {"run.py"} == {name for name in inside if ".dist-info/" not in name}


def test_the_command_works_in_an_empty_folder(tessera, tmp_path):
    help_text = call(tessera, "--help", cwd=tmp_path).stdout
    assert "  tessera COMMAND" in help_text and "--no-python tessera all RECIPE" in help_text
    assert "run.py" not in help_text
    listed = call(tessera, "recipes", cwd=tmp_path)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == names(), listed.stderr
    checked = call(tessera, "check", "digits", cwd=tmp_path)
    assert checked.returncode == 0 and "runs/digits/" in checked.stdout, checked.stderr
    refused = call(tessera, "all", cwd=tmp_path)
    assert refused.returncode == 2 and "`tessera recipes` lists them" in refused.stderr
    assert not list(tmp_path.iterdir())
