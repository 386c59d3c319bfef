"""Arrays of .npz archives, which others may have made: none is read that asks for more memory than its file holds."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

PACKED = 100  # times that pixels and statistics shrink at most when they are compressed
HARMLESS = 2**28  # bytes that may be all alike


def check_array(path: Path, name: str) -> None:
    """ValueError where an archive has no such array, or one of objects, or one that its file cannot hold."""
    entry = find_array(path, name)
    with _opened(path, entry) as file:
        _check_size(path, entry, file)


def read_array(path: Path, name: str) -> np.ndarray:
    """An array of an archive, read whole, by the rules of `check_array`; ValueError too where it is damaged."""
    check_array(path, name)
    with _opened(path, find_array(path, name)) as file:
        return np.lib.format.read_array(file)


@contextmanager
def _opened(path: Path, entry: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
            yield file
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path}: {entry.filename} is damaged ({error})") from error


def map_array(path: Path, name: str) -> np.ndarray:
    """An array of an archive, read only: mapped into memory where it is not compressed, else as `read_array`."""
    entry = find_array(path, name)
    if entry.compress_type != zipfile.ZIP_STORED:
        return read_array(path, name)
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2").tolist()  # of name and extra in the header that stands before it
        start = entry.header_offset + 30 + sum(lengths)
        file.seek(start)
        _check_size(path, entry, file)
        file.seek(start)
        shape, by_columns, dtype = _header(path, file)
        return np.memmap(path, dtype, "r", offset=file.tell(), shape=shape, order="F" if by_columns else "C")


def find_array(path: Path, name: str) -> zipfile.ZipInfo:
    """The entry of an array; ValueError where a file is no archive, or has no such array."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [held.removesuffix(".npy") for held in archive.namelist()]
            if name in names:
                return archive.getinfo(f"{name}.npy")
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no .npz archive, or is damaged ({error})") from error
    raise ValueError(f"{path} holds no {name}; it has {', '.join(names) or 'nothing'}")


def _check_size(path: Path, entry: zipfile.ZipInfo, file: IO[bytes]) -> None:
    """ValueError unless an array fits into its entry, and the entry into the file that it is compressed in."""
    shape, _, dtype = _header(path, file)
    claimed = math.prod(shape) * dtype.itemsize
    packed = min(entry.compress_size, path.stat().st_size)
    if claimed > entry.file_size or (entry.file_size > HARMLESS and entry.file_size > PACKED * packed):
        asked = max(claimed, entry.file_size) / 1e9
        raise ValueError(
            f"{path}: {entry.filename} asks for {asked:,.1f} GB of memory, and its file holds {packed / 1e6:,.1f} MB;"
            " it is no archive of images or statistics"
        )


def _header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type, as an array's header states them."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"{path} holds an array of {dtype} {list(shape)}, which is not read")
    return shape, by_columns, dtype
