"""This project computes what the published implementations compute: one item a stored output of every case."""

import math
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import torch
from golden_kinds import Case, kind_of
from torch import Tensor


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "folder" not in metafunc.fixturenames:
        return
    root = metafunc.config.getoption("golden")
    folders = sorted(case_folders(root))
    if not folders:
        raise pytest.UsageError(f"--golden {root}: there is no meta.json below it")
    items = [(folder, name) for folder in folders for name in Case(folder).stored_names()]
    labels = [f"{folder.relative_to(root)}-{name}" for folder, name in items]
    metafunc.parametrize("folder, name", items, ids=labels)


def case_folders(root: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The folders below `root` that hold a meta.json; links are followed, but never into a folder they lie in."""
    real = root.resolve()
    if real in above:
        return
    if (root / "meta.json").is_file():
        yield root
    for path in root.iterdir():
        if path.is_dir():
            yield from case_folders(path, (*above, real))


def test_links_to_cases_are_followed_and_circles_are_not(tmp_path):
    case = tmp_path / "elsewhere" / "case"
    case.mkdir(parents=True)
    (case / "meta.json").write_text("{}")
    root = tmp_path / "root"
    root.mkdir()
    (root / "one").symlink_to(case)
    (root / "several").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    assert {path.relative_to(root).as_posix() for path in case_folders(root)} == {"one", "several/case"}


def test_output(folder: Path, name: str):
    case = Case(folder)
    kind = kind_of(case)
    if kind is None:
        pytest.skip(f"unknown kind: {case.meta['class']}")
    unmatched = kind.not_ours(case) if hasattr(kind, "not_ours") else getattr(kind, "NOT_OURS", {})
    for pattern, reason in unmatched.items():
        if fnmatch(name, pattern):
            pytest.skip(f"{name}: {reason}")
    ours = computed(folder)
    assert name in ours, f"{kind.__name__} neither computes {name} nor lists it in NOT_OURS"
    compare(ours[name], stored(folder)[name], tolerance(case, kind, name), own_scale(case, name))


@cache
def computed(folder: Path) -> dict[str, Tensor]:
    case = Case(folder)
    return {name: value.detach() for name, value in kind_of(case).outputs(case).items()}


@cache
def stored(folder: Path) -> dict[str, Tensor]:
    return Case(folder).stored


def tolerance(case: Case, kind, name: str) -> float:
    """0 where the case asks for equality, else the looser tolerance of this output, else the case's own."""
    if any(fnmatch(f"output.{name}", pattern) for pattern in case.meta["exact"]):
        return 0.0
    stated = {k.removeprefix("output."): v for k, v in case.meta.get("looser_tolerance", {}).items()}
    for pattern, value in (stated | getattr(kind, "LOOSER", {})).items():
        if fnmatch(name, pattern):
            return value
    return case.meta["tolerance"]["value"]


NOISE = 1e-7  # of float32: what is exactly zero by the formula comes out as less


def own_scale(case: Case, name: str) -> float:
    """What max|a - b| / max|b| may be besides, of the small outputs that the case names; infinite for any other."""
    stated = case.meta["tolerance"].get("own_scale", {})
    return stated["value"] if f"output.{name}" in stated.get("outputs", []) else math.inf


def compare(ours: Tensor, theirs: Tensor, allowed: float, of_largest: float = math.inf) -> None:
    """max|a - b| <= allowed * max(1, max|b|), which no NaN meets, and <= of_largest * max|b| but for noise; whole
    numbers and exact outputs must be equal."""
    assert ours.shape == theirs.shape, f"{list(ours.shape)} instead of {list(theirs.shape)}"
    if allowed == 0 or not theirs.is_floating_point():
        assert ours.is_floating_point() == theirs.is_floating_point(), f"{ours.dtype} instead of {theirs.dtype}"
        assert torch.equal(ours.to(theirs.dtype), theirs), "not equal"
        return
    difference = (ours.double() - theirs.double()).abs().max().item()
    largest = theirs.abs().max().item()
    limit = allowed * max(1.0, largest)
    if largest and of_largest < math.inf:
        limit = min(limit, max(of_largest * largest, NOISE))
    assert difference <= limit, f"differs by {difference:.3g}, allowed {limit:.3g}"
