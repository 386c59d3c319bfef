"""Checksums of a folder's files: written when the folder is complete, compared when a file is first read.

Pages, which are read by people alone and may be edited, are not recorded.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.files.writing import entries, read_json, write_json

CHECKSUMS = "checksums.json"  # {"model.safetensors": {"bytes": 1234, "sha256": "..."}, ...}, by path in the folder
SIGNATURE = "sha256_of_this"  # in a JSON file: of all else in it
NOTE = "made_from.json"  # of an artefact
WHOLES = (NOTE, "model_index.json")  # one of them is in a folder that has a record for its parts
PARTS_ABOVE = 3  # folders at most that a component lies below such a one
PAGES = (".md", ".html")
THREADS = 8  # that read and hash at the same time
_read: dict[tuple[str, int, int, int], str] = {}  # sha256 by path, size, time of change and inode


def write_checksums(folder: Path, files: Iterable[Path] | None = None, kept: dict[str, Any] | None = None) -> None:
    """Record size and sha256 of `files`, by default of all in `folder`, beside the entries `kept` of others."""
    chosen = [path for path in (entries(folder) if files is None else files) if path.is_file()]
    chosen = sorted(path for path in chosen if path.name != CHECKSUMS and path.suffix not in PAGES)
    with ThreadPoolExecutor(THREADS) as pool:
        sums = list(pool.map(sha256, chosen))
    sizes = [path.stat().st_size for path in chosen]
    names = [path.relative_to(folder).as_posix() for path in chosen]
    new = {name: {"bytes": size, "sha256": digest} for name, size, digest in zip(names, sizes, sums)}
    write_signed(folder / CHECKSUMS, dict(sorted(((kept or {}) | new).items())), indent=0)


def check_sizes(folder: Path, remedy: str) -> None:
    """ValueError naming the first file whose size is not the recorded one; nothing without a record.

    `remedy` says what to do, after the name of the file and what is wrong with it.
    """
    compare_sizes(folder, recorded_in(folder), remedy)


def compare_sizes(folder: Path, record: dict[str, dict[str, Any]], remedy: str) -> None:
    for name, recorded in record.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing; {remedy}")
        if (size := path.stat().st_size) != recorded["bytes"]:
            raise ValueError(
                f"{path} is damaged: it has {size} bytes, and was written with {recorded['bytes']}; {remedy}"
            )


def check_content(folder: Path, remedy: str, chosen: Callable[[str], bool] | None = None) -> None:
    """As `check_sizes`, also of the content; with `chosen`, of those files alone that it takes and that are there.

    What was read once in this process and has not been changed since is not read again.
    """
    record = recorded_in(folder)
    if chosen is not None:
        record = {name: known for name, known in record.items() if chosen(name) and (folder / name).is_file()}
    compare_sizes(folder, record, remedy)
    with ThreadPoolExecutor(THREADS) as pool:
        sums = pool.map(sha256, [folder / name for name in record])
        for (name, known), digest in zip(record.items(), sums):
            if digest != known["sha256"]:
                raise ValueError(f"{folder / name} is damaged: it is not what was written; {remedy}")


def check_part(folder: Path, remedy: str) -> None:
    """`check_content` of the files in `folder` itself, a part of an artefact or pipeline; nothing without a record."""
    part = folder.absolute()
    for whole in (part, *part.parents[:PARTS_ABOVE]):
        if (whole / CHECKSUMS).is_file() and any((whole / mark).is_file() for mark in WHOLES):
            names = {path.relative_to(whole).as_posix() for path in part.iterdir()}
            check_content(whole, remedy, names.__contains__)
            return


def recorded_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 by path below `folder`; nothing without a record. ValueError where the record is damaged."""
    return read_signed(folder / CHECKSUMS) if (folder / CHECKSUMS).is_file() else {}


def write_signed(path: Path, values: dict[str, Any], indent: int = 2) -> None:
    """`values` as JSON, with the sha256 of what they say."""
    write_json(path, values | {SIGNATURE: signature(values)}, indent=indent)


def read_signed(path: Path) -> dict[str, Any]:
    """What `write_signed` wrote; ValueError that names the file where it says something else now."""
    values = read_json(path)
    if not isinstance(values, dict) or values.pop(SIGNATURE, None) != signature(values):
        raise ValueError(f"{path} is damaged: it is not what was written")
    return values


def signature(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Of a file's content, as hexadecimal digits; read once while the file stays as it is."""
    state = path.stat()
    key = (str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ino)
    if key not in _read:
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        _read[key] = digest.hexdigest()
    return _read[key]
