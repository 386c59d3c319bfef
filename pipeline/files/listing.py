"""The image files below a folder: an image by its content, every folder and every linked file once."""

import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

PASSED_OVER = {"@eadir", "__macosx", "lost+found", "#recycle", "@recycle", "$recycle.bin", "system volume information"}
# Formats that run a program when opened, or that Pillow knows by name and cannot decode.
NO_IMAGES = {"EPS", "WMF", "HDF5", "GRIB", "BUFR", "MPEG"}
# Formats whose first bytes say too little: theirs are the files with their endings.
BY_ENDING = {"TGA", "IMT", "IPTC", "SPIDER", "PCD", "MCIDAS", "PIXAR", "XVTHUMB"}
# Endings of files that lie beside images by the million; they are not opened to see whether they are images.
OTHERS = (
    *("txt", "caption", "json", "jsonl", "csv", "tsv", "xml", "yaml", "yml", "toml", "ini", "md", "html", "log", "py"),
    *(
        "npy",
        "npz",
        "pt",
        "pth",
        "safetensors",
        "parquet",
        "arrow",
        "tar",
        "zip",
        "gz",
        "db",
        "pdf",
        "mp4",
        "avi",
        "wav",
    ),
)
log = logging.getLogger(__name__)


@dataclass
class Listing:
    """What lies below a folder, by names relative to it, in sorted order."""

    files: list[str]  # images, by their content or ending; readable or not
    broken: dict[str, str]  # those that cannot be read, as far as that is known without opening them, and why
    without: list[str]  # folders directly below it in or below which there is no image


@dataclass
class Lister:
    """Lists folders that belong together: what one of them holds is not listed a second time through a link."""

    folders: set[tuple[int, int] | None] = field(default_factory=set)  # that were visited, by device and inode
    files: list[str] = field(default_factory=list)  # paths of all that is listed

    def list_images(self, folder: Path) -> Listing:
        """The images of a folder. Hidden files and folders and those that systems add are passed over.

        Links are followed; what is reached a second time, in circles or not, is left out with a line in the log.
        Raises ValueError naming a folder that cannot be read.
        """
        names, links, inner, again, broken = [], [], [], [], {}
        for name, entry in self._walk(folder, again):
            if entry is None:
                inner.append(name)
            elif entry.is_symlink():
                links.append(name)
            elif looks_like_image(entry.path):
                names.append(name)
                if not entry.is_file():
                    broken[name] = why_no_file(entry.path)
        self.files += [f"{folder}/{name}" for name in names]
        for name in self._linked_images(folder, sorted(links), again):
            names.append(name)
            if why := why_no_file(f"{folder}/{name}"):
                broken[name] = why
        if again:
            first = readable_name(os.path.join(folder, again[0]))
            log.warning("%d links to what is listed already are left out, the first is %s", len(again), first)
        names.sort(key=lambda name: name.replace("/", "\0"))  # by the names of folders, then of files
        with_images = {name.partition("/")[0] for name in names}
        return Listing(names, broken, sorted(set(inner) - with_images))

    def _walk(self, folder: Path, again: list[str]) -> Iterator[tuple[str, os.DirEntry | None]]:
        """Files with their entries, and folders directly below `folder` with None; real folders before linked ones."""
        pending, links = [""], []
        while pending or links:
            if not pending:
                pending, links = sorted(links, reverse=True), []
            place = pending.pop()
            if not self._is_new(os.path.join(folder, place)):
                again.append(place)
                continue
            for entry in visible_entries(os.path.join(folder, place)):
                name = f"{place}/{entry.name}" if place else entry.name
                if not (os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()):
                    yield name, entry
                elif entry.name.lower() not in PASSED_OVER:
                    (links if entry.is_symlink() else pending).append(name)
                    if not place:
                        yield name, None

    def _is_new(self, folder: str) -> bool:
        identity = _identity(folder)
        new = identity not in self.folders
        self.folders.add(identity)
        return new

    def _linked_images(self, folder: Path, links: list[str], again: list[str]) -> list[str]:
        """The links to images that are not listed yet, and those to nothing."""
        kept, known = [], {_identity(path) for path in self.files} if links else set()
        for name in links:
            path = os.path.join(folder, name)
            identity = _identity(path)
            if identity is not None and identity in known:
                again.append(name)
            elif looks_like_image(path):
                kept.append(name)
                known.add(identity)
        self.files += [os.path.join(folder, name) for name in kept]
        return kept


def visible_entries(folder: str) -> list[os.DirEntry]:
    """What a folder holds, without what is hidden; ValueError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(
            f"data.source.path: the folder {readable_name(folder)!r} cannot be read ({error.strerror}); allow it, or"
            " move it away"
        ) from error


def _identity(path: str) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def looks_like_image(path: str) -> bool:
    """Whether a file has the ending of an image format, or, of an unknown ending, its first bytes.

    A link to nothing counts as an image, so that it is named when it is read; what is no regular file does by its
    ending alone, since it is never opened.
    """
    ending = path.rpartition(".")[2].lower()
    if ending in image_endings():
        return True
    if ending in OTHERS:
        return False
    if why_no_file(path):
        return os.path.islink(path) and not os.path.exists(path)
    return has_image_content(path)


def has_image_content(path: str) -> bool:
    """Whether a file begins like one of the formats that are known by their first bytes, and has a whole header."""
    try:
        with open(path, "rb") as file:
            prefix = file.read(16)
            if not any(_accepts(name, prefix) for name in image_formats() if name not in BY_ENDING):
                return False
            file.seek(0)
            with Image.open(file, formats=[name for name in image_formats() if name not in BY_ENDING]):
                return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _accepts(name: str, prefix: bytes) -> bool:
    accept = Image.OPEN[name][1]
    return accept is not None and len(prefix) == 16 and accept(prefix) is True


@cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NO_IMAGES)


@cache
def image_endings() -> frozenset[str]:
    """The endings of these formats, without the dot."""
    formats = {*image_formats(), "MPO"}  # which is read as JPEG
    return frozenset(ending[1:] for ending, name in Image.registered_extensions().items() if name in formats)


def why_no_file(path: str | os.PathLike) -> str | None:
    """Why a path is not to be opened as a file: a link to nothing, a pipe, a device; None where it may be."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return "a link to nothing" if os.path.islink(path) else str(error.strerror)
    return None if stat.S_ISREG(mode) else "no regular file"


def readable_name(path: str | os.PathLike) -> str:
    """A path as text that can be written: of bytes that are no UTF-8 it is read as Latin-1."""
    name = os.fsencode(path)
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")
