"""What files hold, as one hash that is quick also for millions of them."""

import hashlib
import heapq
import os
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path

WHOLE = 2**28  # bytes that are read: all of a collection that has no more, else at most so many of it
SAMPLED = 1000  # files of a larger collection that are read
BLOCK = 2**16  # bytes of a part of a file that is read in parts


def hash_files(folder: Path, names: Sequence[str]) -> str:
    """A hash of the files `names` of a folder, in this order: of names, sizes and contents, wherever the folder is.

    A collection of up to 256 MiB is read whole, in about a second, and times of change do not count: a copy has the
    same hash. Of a larger one the times count too, and contents are read of 1,000 files, chosen by a hash of their
    names: whole, or in blocks from the first to the last, 256 MiB together. Its limit: in a larger collection a file
    outside of these that keeps name, size and time of change is taken for the same, and so is one that was changed
    between two blocks. What is no regular file is never opened; it, and a file that cannot be read, count by name.
    """
    states = [_state(f"{folder}/{name}") for name in names]
    sizes = [size for size, _ in states]
    small = sum(size or 0 for size in sizes) <= WHOLE
    digest = hashlib.sha256(repr(small).encode())
    for name, (size, time) in zip(names, states):
        digest.update(repr((name, size, None if small else time)).encode())
    regular = [(name, size) for name, size in zip(names, sizes) if size]
    chosen = regular if small else heapq.nsmallest(SAMPLED, regular, key=lambda file: zlib.crc32(os.fsencode(file[0])))
    for name, size in chosen:
        _add_content(digest, f"{folder}/{name}", size, WHOLE if small else WHOLE // len(chosen))
    return digest.hexdigest()


def _state(path: str) -> tuple[int | None, int]:
    """Size and time of change of a regular file; without a size where there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return None, 0
    return (state.st_size, state.st_mtime_ns) if stat.S_ISREG(state.st_mode) else (None, 0)


def _add_content(digest: "hashlib._Hash", path: str, size: int, most: int) -> None:
    """Add what a file holds: all of it, or blocks from the first to the last, about `most` bytes together."""
    try:
        with open(path, "rb") as file:
            if size <= most:
                while block := file.read(2**20):
                    digest.update(block)
                return
            count = max(2, most // BLOCK)
            for number in range(count):
                file.seek(number * (size - BLOCK) // (count - 1))
                digest.update(file.read(BLOCK))
    except OSError as error:
        digest.update(f"not read: {error.errno}".encode())
