"""Data files on this machine: which files a path or a pattern means, and where paths inside of them may lead."""

import glob
import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.files.content import hash_files
from pipeline.files.paths import given_path

SPECIAL = {character: f"%{ord(character):X}" for character in "[]*?"}  # in patterns


@dataclass(frozen=True)
class DataFiles:
    """The files that a path means."""

    path: Path
    folder: Path  # which they are relative to
    names: list[str]  # in sorted order

    @cached_property
    def content(self) -> str:
        """A hash of the files, wherever their folder is."""
        return hash_files(self.folder, self.names)[:32]

    def pattern(self) -> str:
        """The path as a pattern in which all that is there already stands for itself."""
        there = self.path
        while not there.exists():
            there = there.parent
        rest = self.path.relative_to(there)
        return os.path.join(glob.escape(str(there)), *rest.parts)

    def plain_folder(self, place: Path) -> Path:
        """The folder, or where patterns would misread its names a folder of links to its files, made in `place`.

        Libraries join patterns to the name of a folder, and choose files by endings in lower case.
        """
        plain = [_plain(name) for name in self.names]
        if plain == self.names and _plain(str(self.folder)) == str(self.folder):
            return self.folder
        links = place / hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:16]
        for name, link in zip(self.names, plain):
            target, new = (self.folder / name).resolve(), links / link
            if new.is_symlink() and new.readlink() == target:
                continue
            new.parent.mkdir(parents=True, exist_ok=True)
            new.unlink(missing_ok=True)
            new.symlink_to(target)
        return links


def find_data_files(path: str) -> DataFiles | None:
    """The files of a folder, hidden ones apart, of a file, or of a pattern; None where a path means none here."""
    given = given_path(path)
    if given.is_dir():
        return DataFiles(given, given, sorted(_below(given)))
    if given.is_file():
        return DataFiles(given, given.parent, [given.name])
    if glob.has_magic(path) and "://" not in path:
        pattern = DataFiles(given, given.parent, []).pattern()
        names = sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
        folder = os.path.commonpath([os.path.dirname(name) for name in names]) if names else ""
        return (
            DataFiles(given, Path(folder), [os.path.relpath(name, folder or ".") for name in names]) if names else None
        )
    return None


def _below(folder: Path) -> list[str]:
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [os.path.relpath(os.path.join(place, name), folder) for name in files if not name.startswith(".")]
    return names


def _plain(name: str) -> str:
    """A name without what patterns treat specially, its ending in lower case."""
    stem, ending = os.path.splitext(name)
    return "".join(SPECIAL.get(character, character) for character in stem) + ending.lower()


def file_inside(path: str, roots: list[Path]) -> Path | None:
    """The file that `path` names, absolute or relative to one of `roots`; None where it leads out of all of them."""
    for root in roots:
        file = (root / path).resolve()
        if file.is_relative_to(root.resolve()):
            return file
    return None
