"""What every source of images promises: records by index, and the names of its classes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from PIL import Image

Split = Literal["train", "held_out"]


class BrokenImage(ValueError):
    """A record that cannot be decoded; the message names the file and the reason."""


@dataclass
class Record:
    """One image as it is stored; making it RGB and square is `pipeline.images`' business."""

    image: Image.Image
    label: int | None = None
    caption: str | None = None
    name: str = ""  # file or row, for messages


class Source(ABC):
    """A split of a collection. `split` is a derived constructor argument; the others are the recipe's."""

    class_names: list[str]  # label i is called class_names[i]; empty when there are no classes

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Record:
        """Record `index`; raises BrokenImage when it cannot be decoded."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of what the records are (names, sizes, times of change, or content)."""
