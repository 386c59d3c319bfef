"""What every source of images promises: records by index, and the names of its classes and attributes."""

import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Literal

from PIL import Image

from pipeline.draws import mix

Split = Literal["train", "held_out"]

# What Pillow raises on damaged files: OSError and SyntaxError by design, the rest from parsers fed with nonsense.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)
DAMAGED += (ZeroDivisionError, AttributeError, struct.error, Image.DecompressionBombError)


class BrokenImage(ValueError):
    """A record that cannot be decoded; the message names the file and the reason."""


@dataclass
class Record:
    """One image as it is stored; making it RGB and square is `pipeline.images.reading`' business."""

    image: Image.Image
    label: int | None = None
    caption: str | None = None
    name: str = ""  # file or row, for messages
    attributes: tuple[bool, ...] = ()  # whether it has each of the source's attributes


class Source(ABC):
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
        """A hash of what the records are (names, sizes, times of change, or content)."""


def decode(file: str | os.PathLike | IO[bytes], name: str) -> Image.Image:
    """The first frame of an image file, decoded to its last byte; BrokenImage, naming it, where that fails."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except DAMAGED as error:
        raise BrokenImage(f"{name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "not an image Pillow can read" if "cannot identify" in text else text or type(error).__name__


def set_aside(names: Iterable[str], fraction: float) -> list[bool]:
    """Which of `names` are held out: those whose hash falls into the fraction, so that it stays when others join.

    A collection of two or more gives each side at least one where a fraction is asked for. Raises ValueError unless
    0 <= fraction < 1.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"data.source.held_out is {fraction:g}; give a fraction of the images, at least 0 and below 1")
    places = [mix("held out", name) / 2**63 for name in names]
    held_out = [place < fraction for place in places]
    if len(places) > 1 and fraction > 0 and len(set(held_out)) == 1:
        lone = places.index(max(places) if held_out[0] else min(places))
        held_out[lone] = not held_out[lone]
    return held_out
