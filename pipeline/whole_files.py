"""Files and folders that are written whole or not at all, with the modes that open() and mkdir() give.

What is written has a hidden name until it is complete, and is renamed then: whoever finds the name finds all of it.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A hidden path beside `path`, of the same ending, to write to; it takes the name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    try:
        yield draft
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    draft.chmod(0o666 & ~_mask())  # safetensors writes for the owner alone
    os.replace(draft, path)


def write_bytes(path: Path, content: bytes) -> None:
    with new_file(path) as draft:
        draft.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int | None = 2, **options: Any) -> None:
    """`value` as JSON with a line's end; `options` are those of json.dumps."""
    write_text(path, json.dumps(value, indent=indent, **options) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An uncompressed .npz archive."""
    with new_file(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A .safetensors file."""
    with new_file(path) as draft:
        safetensors.torch.save_file(dict(tensors), draft, dict(metadata))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty hidden folder beside `path` to fill; it takes the place of `path` when the block ends well."""
    draft = path.with_name(f".{path.name}-draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    replace_folder(draft, path)


def copy_folder(source: Path, path: Path) -> None:
    with new_folder(path) as draft:
        shutil.copytree(source, draft, dirs_exist_ok=True)


def replace_folder(draft: Path, path: Path) -> None:
    """Put the complete folder `draft` in the place of `path`, with ordinary modes."""
    ordinary_modes(draft)
    old = path.with_name(f".{path.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    draft.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def ordinary_modes(folder: Path) -> None:
    """Give everything below `folder` the modes that open() and mkdir() would."""
    mask = _mask()
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _mask() -> int:
    """The mode bits that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
