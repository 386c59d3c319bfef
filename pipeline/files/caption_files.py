"""Captions beside pictures: in text files of their names, and in metadata.csv or metadata.jsonl of their folders."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.files.content import hash_files
from pipeline.files.listing import readable_name

BESIDE = (".txt", ".caption")  # endings of a text file that takes a picture's name; the first that is there is read
METADATA = ("metadata.csv", "metadata.jsonl")  # as the imagefolder of Hugging Face's datasets has them
FILE_NAME = "file_name"  # the column of a picture's path, from the folder of the metadata
USUAL = ("text", "caption")  # columns of captions, of which the first that is there is read where none is stated


@dataclass(frozen=True)
class CaptionFiles:
    """The captions of pictures `names`, posix paths relative to `folder`, below which all is read.

    `columns` are those of the metadata that hold captions; without them USUAL. A picture that no metadata names has
    those of the text file beside it, one a line. Raises ValueError that names the file and the line at fault.
    """

    folder: Path
    names: Sequence[str]
    columns: tuple[str, ...] = ()

    @property
    def are_there(self) -> bool:
        """Whether there is a caption for any of the pictures, or a file that may hold one."""
        return any(self._metadata.values()) or any(self._beside(name) for name in self.names)

    def read(self, name: str) -> tuple[str, ...]:
        """The captions of one picture; none where it has none."""
        stated = self._metadata.get(name)
        if stated is not None:
            return stated
        file = self._beside(name)
        return () if file is None else tidy(read_text(self.folder / file).splitlines(), readable_name(file))

    def fingerprint(self) -> str:
        """Of all files that captions are read from; `hash_files` says what it sees of them."""
        beside = [file for name in self.names if (file := self._beside(name))]
        folder = str(self.folder)
        return hash_files(self.folder, [os.path.relpath(file, folder) for file in self.metadata_files] + beside)

    @cached_property
    def metadata_files(self) -> list[Path]:
        """Of every folder that holds pictures, and of those above it up to `folder`; ValueError for two in one."""
        folders = {parent for name in self.names for parent in PurePosixPath(name).parents}
        found = []
        for folder in sorted(self.folder / place for place in folders):
            there = [folder / name for name in METADATA if (folder / name).is_file()]
            if len(there) > 1:
                raise ValueError(f"data.source: {readable_name(folder)} holds {' and '.join(METADATA)}; leave one")
            found += there
        return found

    @cached_property
    def _metadata(self) -> dict[str, tuple[str, ...]]:
        """The captions of all pictures that metadata names; several rows of a picture are several captions."""
        known, captions = set(self.names), {}
        for file in self.metadata_files:
            for where, row in read_rows(file):
                texts = self._texts(row, where)
                if texts is None:
                    break  # of other columns alone
                name = self._name(row, file, where)
                if name in known:
                    captions[name] = captions.get(name, ()) + texts
        return captions

    def _texts(self, row: dict[str, Any], where: str) -> tuple[str, ...] | None:
        usual = [column for column in USUAL if column in row][:1]
        columns = self.columns or usual
        if missing := [column for column in columns if column not in row]:
            there = ", ".join(str(name) for name in row if name != FILE_NAME)
            raise ValueError(f"data.source.caption: {where} has no {missing[0]!r}; it has: {there}")
        if not columns:
            return None
        return tidy((text for column in columns for text in as_list(row[column])), where)

    def _name(self, row: dict[str, Any], file: Path, where: str) -> str:
        stated = row.get(FILE_NAME)
        if not isinstance(stated, str) or not stated:
            raise ValueError(f"data.source: {where} has no {FILE_NAME}, the path of a picture from its folder")
        path = os.path.normpath(file.parent / stated)
        if not os.path.lexists(path) or not Path(path).is_relative_to(os.path.normpath(self.folder)):
            raise ValueError(
                f"data.source: {where} names {stated!r}, which is no file below {readable_name(file.parent)}"
            )
        return Path(path).relative_to(os.path.normpath(self.folder)).as_posix()

    def _beside(self, name: str) -> str | None:
        stem = os.path.splitext(name)[0]
        return next((stem + ending for ending in BESIDE if (self.folder / (stem + ending)).is_file()), None)


def tidy(texts: Iterable[Any], where: str) -> tuple[str, ...]:
    """Captions without the white space around them; empty ones and null are left out. ValueError for other values."""
    captions = []
    for text in texts:
        if not isinstance(text, str | None):
            raise ValueError(f"data.source.caption: {where} holds {text!r}, which is no text")
        if text and (text := text.strip()):
            captions.append(text)
    return tuple(captions)


def as_list(value: Any) -> list[Any]:
    """The texts of a value that is one text, or several."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def read_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV or of JSON lines by column, each with words that say where it is; ValueError for a bad one."""
    text, name = read_text(file), readable_name(file)
    if file.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"line {number} of {name}", read_object(line, f"line {number} of {name}")
        return
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        for row in reader:
            where = f"line {reader.line_num} of {name}"
            if None in row or None in row.values():
                given = sum(value is not None for value in row.values()) + len(row.get(None, [])) - (None in row)
                raise ValueError(f"data.source: {where} has {given} fields, not {len(reader.fieldnames)}; quote commas")
            yield where, row
    except csv.Error as error:
        raise ValueError(f"data.source: the row after line {reader.line_num} of {name} is no CSV ({error})") from None


def read_object(line: str, where: str) -> dict[str, Any]:
    """The mapping that a line of JSON holds."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"data.source: {where} is no JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise ValueError(f"data.source: {where} is no mapping of columns")
    return row


def read_text(file: Path) -> str:
    """A file as UTF-8, with or without a byte order mark; ValueError that names it where it is none."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data.source: {readable_name(file)} is no UTF-8 (byte {error.start}); convert it") from None
    except OSError as error:
        raise ValueError(f"data.source: {readable_name(file)} cannot be read ({error.strerror})") from None
