"""What every source of images promises: records by index, and the names of its classes and attributes."""

import hashlib
import os
import struct
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Literal

from PIL import Image

from pipeline.draws import mix
from pipeline.files.listing import image_formats, why_no_file
from pipeline.ranges import RangedArguments

Split = Literal["train", "held_out"]

# What Pillow raises on damaged files: OSError and SyntaxError by design, the rest from parsers fed with nonsense.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)
DAMAGED += (ZeroDivisionError, AttributeError, struct.error, Image.DecompressionBombError)


class BrokenImage(ValueError):
    """A record that cannot be decoded; the message names the file and the reason."""


class MissingImages(ValueError):
    """The images are not on this machine; every other fault of a source is another ValueError."""


@dataclass
class Record:
    """One image as it is stored; making it RGB and square is `pipeline.images.reading`' business."""

    image: Image.Image
    label: int | None = None
    name: str = ""  # file or row, for messages
    attributes: tuple[bool, ...] = ()  # whether it has each of the source's attributes


class Source(RangedArguments, ABC):
    """A split of a collection. `split` is a derived constructor argument; the others are the recipe's."""

    class_names: list[str]  # label i is called class_names[i]; empty when there are no classes
    attribute_names: list[str] = []  # what an image has or has not, beside its class; cards probe codes for it

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Record:
        """Record `index`; raises BrokenImage when it cannot be decoded."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of what the records are: another one where an image is added, removed or changed."""

    def label_of(self, index: int) -> int | None:
        """The label of a record; a source that can, answers without decoding its image."""
        return self.read(index).label

    def class_counts(self) -> list[int]:
        """How many records each class has, [classes]; empty without classes."""
        counts = Counter(self.label_of(index) for index in range(len(self) if self.class_names else 0))
        return [counts[label] for label in range(len(self.class_names))]

    @property
    def has_captions(self) -> bool:
        """Whether its images have captions, told without decoding one; ValueError where those are not as stated."""
        return False

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a record, none of them empty, without decoding its image; () where it has none.

        Raises ValueError where what is to be a caption is no text.
        """
        return ()

    def caption_fingerprint(self) -> str:
        """A hash of all captions, record by record: another one where a caption is added, removed or changed."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(repr(self.captions(index)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def broken(self) -> dict[int, str]:
        """By index, the messages of records that `read` will refuse, as far as they are known without decoding."""
        return {}


def decode(file: str | os.PathLike | IO[bytes], name: str) -> Image.Image:
    """The first frame of an image file, decoded to its last byte; BrokenImage, naming it, where that fails.

    What is no regular file, such as a pipe, is not opened.
    """
    if isinstance(file, (str, os.PathLike)) and (why := why_no_file(file)):
        raise BrokenImage(f"{name}: {why}")
    try:
        with Image.open(file, formats=image_formats()) as image:
            image.load()
            return image
    except DAMAGED as error:
        raise BrokenImage(f"{name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "not an image Pillow can read" if "cannot identify" in text else text or type(error).__name__


def set_aside(names: Iterable[str], fraction: float, labels: Sequence[int] = ()) -> list[bool]:
    """Which of `names` are held out: those whose hash falls into the fraction, so that it stays when others join.

    A collection of two or more gives each side at least one where a fraction is asked for, and every one of `labels`
    keeps one for training. Raises ValueError unless 0 <= fraction < 1.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"data.source.held_out is {fraction:g}; give a fraction of the images, at least 0 and below 1")
    places = [mix("held out", name) / 2**63 for name in names]
    largest: dict[int, int] = {}  # by label, the name that stays in training whatever the fraction
    for number, label in enumerate(labels):
        largest[label] = max(largest.get(label, number), number, key=places.__getitem__)
    staying = set(largest.values())
    held_out = [place < fraction and number not in staying for number, place in enumerate(places)]
    movable = [number for number in range(len(places)) if number not in staying]
    if len(places) > 1 and fraction > 0 and movable and len(set(held_out)) == 1:
        lone = (max if held_out[0] else min)(movable, key=places.__getitem__)
        held_out[lone] = not held_out[lone]
    return held_out
