"""Files and folders that are written whole or not at all, with the modes that open() and mkdir() give.

What is written has a hidden name until it is complete and on the disk, and is renamed then: whoever finds the name
finds all of it, also after a power cut. What is removed gets a hidden name first, so that no half of it has its own.
"""

import errno
import json
import os
import shutil
import stat
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
    _flush(draft)
    os.replace(draft, path)
    _flush(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    with new_file(path) as draft:
        draft.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int | None = 2, **options: Any) -> None:
    """`value` as JSON with a line's end; `options` are those of json.dumps."""
    write_text(path, json.dumps(value, indent=indent, **options) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; ValueError that names the file where it holds none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An uncompressed .npz archive."""
    with new_file(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = {}) -> None:
    """A .safetensors file whose bytes are a function of `tensors` and `metadata`."""
    with new_file(path) as draft:
        safetensors.torch.save_file(dict(tensors), draft, dict(metadata) or None)  # {} with no tensors is damaged
        _sort_metadata(draft)


def _sort_metadata(file: Path) -> None:
    """Bring a safetensors file's metadata into the order of its names, which safetensors writes in any order."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            stream.seek(8)
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            stream.write(text.ljust(length))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty hidden folder beside `path` to fill; it takes the place of `path` when the block ends well."""
    draft = path.with_name(f".{path.name}-draft")
    remove(draft)
    draft.mkdir(parents=True)
    yield draft
    replace_folder(draft, path)


def copy_folder(source: Path, path: Path) -> None:
    with new_folder(path) as draft:
        shutil.copytree(source, draft, dirs_exist_ok=True)


def replace_folder(draft: Path, path: Path) -> None:
    """Put the complete folder `draft` in the place of `path`, with ordinary modes."""
    for file in entries(draft):
        _make_ordinary(file)
        _flush(file)
    _flush(draft)
    old = path.with_name(f".{path.name}-old")
    remove(old)
    if path.exists():
        path.rename(old)
    draft.rename(path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)  # what a network disk keeps while it is open goes the next time


def remove_folder(path: Path) -> None:
    """Remove a folder that others may look for: under its name it is there whole or not at all."""
    old = path.with_name(f".{path.name}-old")
    remove(old)
    path.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder that nobody looks for, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def states_in(folder: Path) -> dict[Path, os.stat_result]:
    """The state of everything below `folder`, to be compared with later."""
    return {path: path.stat() for path in entries(folder)}


def set_modes_of_new(folder: Path, before: Mapping[Path, os.stat_result]) -> None:
    """Give what is new in `folder` since `before` the modes of open() and mkdir(), and the rest those it had.

    Links are left alone, and so is what they lead to.
    """
    for path, state in states_in(folder).items():
        if path not in before:
            _make_ordinary(path)
        elif state.st_mode != before[path].st_mode:
            path.chmod(stat.S_IMODE(before[path].st_mode))


def entries(folder: Path) -> Iterator[Path]:
    """Everything below a folder but links and what they lead to; nothing where there is no such folder."""
    for parent, folders, files in os.walk(folder):
        yield from (path for name in (*folders, *files) if not (path := Path(parent, name)).is_symlink())


def _make_ordinary(path: Path) -> None:
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_mask())


def _flush(path: Path) -> None:
    """Wait until what was written to a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


def _mask() -> int:
    """The mode bits that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
