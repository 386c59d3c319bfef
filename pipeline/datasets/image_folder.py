"""Images in folders on this machine; a folder's name is the class of what lies in it."""

import hashlib
import os
from pathlib import Path

from pipeline.datasets.base import Record, Source, Split, decode, set_aside

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
HELD_OUT = ("val", "valid", "validation", "test", "held_out")


class ImageFolder(Source):
    """`path/<class>/**/image`, or images alone (then without labels), or either of them below `train/` and `val/`.

    Class i is the i-th folder name in sorted order. `train/` beside one of val, valid, validation, test or held_out
    states the split; else the fraction `held_out` is set aside by a hash of each file's name, so that a file keeps its
    side when others are added. Hidden files and other extensions are passed over; links are followed.
    Raises ValueError where there are no images, or where labelled and unlabelled ones are mixed.
    """

    def __init__(self, path: str, held_out: float = 0.1, split: Split = "train"):
        root = Path(path).expanduser()
        if not root.is_dir():
            raise ValueError(f"data.source.path: there is no folder {str(root)!r}; state where your images are")
        train, other = _stated_split(root)
        paths = _images(train)
        if not paths:
            raise ValueError(f"data.source.path: no images below {str(train)!r} ({', '.join(EXTENSIONS)})")
        self.class_names = _classes(paths, train)
        if other is None:
            aside = set_aside(map(str, paths), held_out)
            self.folder, self.files = train, [f for f, a in zip(paths, aside) if a == (split == "held_out")]
        elif split == "train":
            self.folder, self.files = train, paths
        else:
            self.folder, self.files = other, _images(other)
        self.labels = _labels(self.files, self.class_names, self.folder)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Record:
        file = self.folder / self.files[index]
        label = self.labels[index] if self.class_names else None
        return Record(decode(file, str(file)), label, name=str(file))

    def fingerprint(self) -> str:
        """Of the class names and of every file's name, size and time of change."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for name in self.files:
            state = os.stat(self.folder / name)
            digest.update(repr((str(name), state.st_size, state.st_mtime_ns)).encode())
        return digest.hexdigest()[:16]


def _stated_split(root: Path) -> tuple[Path, Path | None]:
    """The folder of training images and, where there is one, of held-out ones."""
    train = root / "train"
    if not train.is_dir():
        return root, None
    others = [root / name for name in HELD_OUT if (root / name).is_dir()]
    if others:
        return train, others[0]
    alone = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")] == ["train"]
    return (train if alone else root), None  # beside cars and ships, train is a class


def _images(folder: Path) -> list[Path]:
    """Image files below `folder`, relative to it, in sorted order."""
    paths = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        kept = (name for name in files if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS)
        paths += [Path(place, name).relative_to(folder) for name in kept]
    return sorted(paths)


def _classes(paths: list[Path], folder: Path) -> list[str]:
    names = sorted({file.parts[0] for file in paths if len(file.parts) > 1})
    loose = [file for file in paths if len(file.parts) == 1]
    if names and loose:
        raise ValueError(
            f"data.source.path: {str(folder / loose[0])!r} lies beside the class folder {names[0]!r}; move every image "
            "into a class folder, or none"
        )
    return names


def _labels(files: list[Path], class_names: list[str], folder: Path) -> list[int]:
    if not class_names:
        return []
    number = {name: i for i, name in enumerate(class_names)}
    if strangers := sorted({file.parts[0] for file in files} - number.keys()):
        raise ValueError(f"data.source.path: {str(folder / strangers[0])!r} is not in a class folder that train has")
    return [number[file.parts[0]] for file in files]
