"""The distinct captions of both splits of a source, and which of them each image has."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from pipeline.components import build
from pipeline.datasets.base import Source, Split
from pipeline.recipes.data import Data
from pipeline.validation import SettingError

EMPTY = ""  # caption 0 of every collection, and the caption of an image that has none
NO_CAPTIONS = ": its images have no captions, for the section text; name where they are, or set text=null"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionRows:
    """Which captions the images of a split have: those of image i are `captions[offsets[i] : offsets[i + 1]]`."""

    offsets: Tensor  # [images + 1] int64
    captions: Tensor  # [C] int64, numbers of captions

    @property
    def without(self) -> int:
        """How many images have none."""
        return int((self.offsets.diff() == 0).sum())


@dataclass(frozen=True)
class CollectedCaptions:
    """Distinct captions by number, the empty one first, then in the order in which images have them."""

    texts: list[str]
    rows: Mapping[str, CaptionRows]  # by split

    def of_split(self, split: str) -> list[str]:
        """The distinct captions of a split, in order of their numbers."""
        return [self.texts[number] for number in self.rows[split].captions.unique().tolist()]

    def fingerprint(self) -> str:
        """A hash of the captions, and of which images have which."""
        digest = hashlib.sha256(repr(self.texts).encode("utf-8", "surrogatepass"))
        for split, rows in self.rows.items():
            digest.update(split.encode() + rows.offsets.numpy().tobytes() + rows.captions.numpy().tobytes())
        return digest.hexdigest()[:16]


def collect(data: Data) -> CollectedCaptions:
    """The captions of a recipe's images; SettingError where no training image has one.

    How many images have none is told by a line of the log.
    """
    numbers = {EMPTY: 0}
    rows = {split: rows_of(build("datasets", data.source, split=split), numbers) for split in get_args(Split)}
    if not len(rows["train"].captions):
        raise SettingError("data.source", NO_CAPTIONS)
    for split, found in rows.items():
        if found.without:
            total = len(found.offsets) - 1
            log.warning("%s of %s images of the split %s have no caption: theirs is empty", found.without, total, split)
    return CollectedCaptions(list(numbers), rows)


def rows_of(source: Source, numbers: dict[str, int]) -> CaptionRows:
    """The captions of a source's images; new ones are added to `numbers`."""
    captions: list[int] = []
    offsets = [0]
    for index in range(len(source)):
        captions += [numbers.setdefault(text, len(numbers)) for text in source.captions(index)]
        offsets.append(len(captions))
    return CaptionRows(torch.tensor(offsets), torch.tensor(captions, dtype=torch.int64))
