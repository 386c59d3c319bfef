"""Checksums of a folder's files: written when the folder is complete, compared when a file is first read."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.whole_files import entries, read_json, write_json

CHECKSUMS = "checksums.json"  # {"model.safetensors": {"bytes": 1234, "sha256": "..."}, ...}, by path below its folder
THREADS = 8  # that read and hash at the same time
_read: dict[tuple[str, int, int, int], str] = {}  # sha256 by path, size, time of change and inode


def write_checksums(folder: Path, files: Iterable[Path] | None = None, kept: dict[str, Any] | None = None) -> None:
    """Record size and sha256 of `files`, by default of all in `folder`, beside the entries `kept` of others."""
    chosen = [path for path in (entries(folder) if files is None else files) if path.is_file()]
    chosen = sorted(path for path in chosen if path.name != CHECKSUMS)
    with ThreadPoolExecutor(THREADS) as pool:
        sums = list(pool.map(sha256, chosen))
    sizes = [path.stat().st_size for path in chosen]
    new = {name_in(folder, path): {"bytes": b, "sha256": s} for path, b, s in zip(chosen, sizes, sums)}
    write_json(folder / CHECKSUMS, dict(sorted(((kept or {}) | new).items())), indent=0)


def check_sizes(folder: Path, remedy: str) -> None:
    """ValueError naming the first file whose size is not the recorded one; nothing without a record.

    `remedy` says what to do, after the name of the file and what is wrong with it.
    """
    for name, recorded in recorded_in(folder).items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing; {remedy}")
        if (size := path.stat().st_size) != recorded["bytes"]:
            raise ValueError(
                f"{path} is damaged: it has {size} bytes and was written with {recorded['bytes']}; {remedy}"
            )


def check_content(folder: Path, remedy: str, below: Path | None = None) -> None:
    """As `check_sizes`, also of the content; of the files `below` alone where that is given, if they are there.

    What was read once in this process and has not been changed since is not read again.
    """
    inside = "" if below is None or below == folder else f"{name_in(folder, below)}/"
    record = {name: known for name, known in recorded_in(folder).items() if name.startswith(inside)}
    there = {name: known for name, known in record.items() if below is None or (folder / name).is_file()}
    if below is None:
        check_sizes(folder, remedy)
    with ThreadPoolExecutor(THREADS) as pool:
        sums = pool.map(sha256, [folder / name for name in there])
        for (name, known), found in zip(there.items(), sums):
            if found != known["sha256"]:
                raise ValueError(f"{folder / name} is damaged: it is not what was written; {remedy}")


def recorded_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 by path below `folder`; nothing without a record. ValueError where the record is damaged."""
    file = folder / CHECKSUMS
    record = read_json(file) if file.is_file() else {}
    known = record.values() if isinstance(record, dict) else [None]
    if not all(isinstance(entry, dict) and set(entry) == {"bytes", "sha256"} for entry in known):
        raise ValueError(f"{file} is damaged: it is no record of sizes and sha256")
    return record


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


def name_in(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
