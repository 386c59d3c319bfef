"""Images in folders on this machine; a folder's name is the class of what lies in it."""

import hashlib
import os
from pathlib import Path, PurePath

from pipeline.datasets.base import MissingImages, Record, Source, Split, decode, set_aside
from pipeline.files.caption_files import CaptionFiles, as_list
from pipeline.files.content import hash_files
from pipeline.files.listing import PASSED_OVER, Lister, Listing, readable_name, visible_entries, why_no_file
from pipeline.files.paths import given_path
from pipeline.ranges import FractionBelowOne

TRAIN = ("train", "training")
HELD_OUT = ("val", "valid", "validation", "dev", "eval", "test", "held_out")  # the first that is there is taken


class ImageFolder(Source):
    """`path/<class>/**/image`, or images alone (then without labels), or either of them below `train/` and `val/`.

    An image is what Pillow reads, by its content or its ending. Class i is the i-th folder name in sorted order; a
    class folder without images is refused, since it would shift the labels. `train/` or `training/` beside one of val,
    valid, validation, dev, eval, test or held_out, in any case, states the split; else the fraction `held_out` is set
    aside by a hash of each file's name, so that a file keeps its side when others are added; each class keeps one for
    training. Hidden files and folders are passed over; links are followed, each file and folder once. Captions are
    those in metadata.csv or metadata.jsonl of a folder, in the columns `caption` (where none is stated `text`, else
    `caption`), or those in NAME.txt or NAME.caption beside NAME.png, one a line.
    Raises ValueError where there are no images, or where labelled and unlabelled ones are mixed; MissingImages where
    there is no such folder.
    """

    def __init__(
        self,
        path: str,
        held_out: FractionBelowOne = 0.1,
        split: Split = "train",
        caption: str | list[str] | None = None,
    ):
        root = given_path(path)
        if not root.is_dir():
            raise MissingImages(
                f"data.source.path: there is no folder {readable_name(root)!r}; state where your images are"
            )
        self.folder, other = _stated_split(root)
        lister = Lister()
        listing = lister.list_images(self.folder)
        if not listing.files:
            raise ValueError(f"data.source.path: no images below {readable_name(self.folder)!r} that Pillow can read")
        folders = _class_folders(listing, self.folder)
        self.class_names = [readable_name(name) for name in folders]
        if other is not None and split == "held_out":
            self.folder, listing = other, lister.list_images(other)
            if not listing.files:
                raise ValueError(f"data.source.path: no images below {readable_name(other)!r} that train has not too")
        self.names, self.labels = listing.files, _labels(listing.files, folders, self.folder)
        self._broken = listing.broken
        if other is None:
            aside = set_aside(self.names, held_out, self.labels)
            mine = [i for i, a in enumerate(aside) if a == (split == "held_out")]
            self.names, self.labels = [self.names[i] for i in mine], [self.labels[i] for i in mine if self.labels]
        columns = () if caption is None else as_list(caption)
        self.caption_files = CaptionFiles(self.folder, self.names, tuple(columns))

    @property
    def files(self) -> list[PurePath]:
        """The images, relative to `folder`."""
        return [PurePath(name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Record:
        file = self.folder / self.names[index]
        return Record(decode(file, readable_name(file)), self.label_of(index), name=readable_name(file))

    def fingerprint(self) -> str:
        """Of the class names and of the files; `pipeline.files.content.hash_files` says what it sees of them."""
        files = hash_files(self.folder, self.names)
        return hashlib.sha256(repr((self.class_names, files)).encode()).hexdigest()[:16]

    def label_of(self, index: int) -> int | None:
        return self.labels[index] if self.class_names else None

    @property
    def has_captions(self) -> bool:
        return self.caption_files.are_there

    def captions(self, index: int) -> tuple[str, ...]:
        return self.caption_files.read(self.names[index])

    def caption_fingerprint(self) -> str:
        """Of the files that hold captions, and of which columns and pictures are taken."""
        parts = self.caption_files.fingerprint(), self.caption_files.columns, self.names
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def broken(self) -> dict[int, str]:
        mine = {i: self.folder / name for i, name in enumerate(self.names) if name in self._broken}
        return {i: f"{readable_name(file)}: {why_no_file(file)}" for i, file in mine.items()}


def _stated_split(root: Path) -> tuple[Path, Path | None]:
    """The folder of training images and, where there is one, of held-out ones; ValueError where there are two."""
    folders = [Path(entry.path) for entry in visible_entries(str(root)) if os.path.isdir(entry.path)]
    there = [folder for folder in folders if folder.name.lower() not in PASSED_OVER]
    train = [entry for entry in there if entry.name.lower() in TRAIN]
    others = sorted(
        (entry for entry in there if entry.name.lower() in HELD_OUT),
        key=lambda entry: HELD_OUT.index(entry.name.lower()),
    )
    if not train:
        return root, None
    if not others:
        return (train[0] if len(there) == 1 else root), None  # beside cars and ships, train is a class
    for alike in (train, [entry for entry in others if entry.name.lower() == others[0].name.lower()]):
        if len(alike) > 1:
            names = " and ".join(sorted(repr(readable_name(entry)) for entry in alike))
            raise ValueError(f"data.source.path: {names} are both there for one split; leave one of them")
    return train[0], others[0]


def _class_folders(listing: Listing, folder: Path) -> list[str]:
    """The names of the class folders, in sorted order."""
    names = sorted({file.partition("/")[0] for file in listing.files if "/" in file})
    loose = [file for file in listing.files if "/" not in file]
    if names and loose:
        raise ValueError(
            f"data.source.path: {readable_name(folder / loose[0])!r} lies beside the class folder"
            f" {readable_name(names[0])!r}; move every image into a class folder, or none"
        )
    if names and listing.without:
        empty = ", ".join(repr(readable_name(folder / name)) for name in listing.without[:5])
        raise ValueError(
            f"data.source.path: there is no image in {empty}, which would be no class; put images there, delete it, or"
            " hide it by a dot before its name"
        )
    if len({readable_name(name) for name in names}) < len(names):
        raise ValueError(f"data.source.path: two class folders of {readable_name(folder)!r} have the same name as text")
    return names


def _labels(files: list[str], class_folders: list[str], folder: Path) -> list[int]:
    if not class_folders:
        return []
    number = {name: i for i, name in enumerate(class_folders)}
    if strangers := sorted({file.partition("/")[0] for file in files} - number.keys()):
        raise ValueError(
            f"data.source.path: {readable_name(folder / strangers[0])!r} is not in a class folder that train has; add"
            " it there, or take it out here"
        )
    return [number[file.partition("/")[0]] for file in files]
