"""Images as the line reads them: of one shape, in [-1, 1], with labels, by index."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.captions.table import Captions
from pipeline.code import Condition
from pipeline.components import build
from pipeline.datasets.base import DAMAGED, BrokenImage, Split
from pipeline.draws import mix, uniform_by_seed
from pipeline.images.preparing import convert, crop, fit, part, pixels_of
from pipeline.images.stored_pixels import from_pixels
from pipeline.nn.image_size import Sides
from pipeline.recipes.data import CHANNELS, Data

FIVE = (None, (0, 0), (1, 0), (0, 1), (1, 1))  # places that `crop` takes: the centre and the corners
IN_MEMORY = 2**30  # bytes of decoded pixels that a split may keep
log = logging.getLogger(__name__)


@dataclass
class ImageBatch:
    """Rows of a collection, ready for a tokenizer."""

    images: Tensor  # [B, channels, height, width] float32 in [-1, 1]
    condition: Condition | None = None  # labels, and features of captions; None when the collection has neither
    attributes: Tensor | None = None  # [B, A] bool, of images as they are; None when the collection has none
    rows: Tensor | None = None  # [B] int64, the records that are shown: of a broken one that which takes its place

    def to(self, *args: Any, **kwargs: Any) -> "ImageBatch":
        condition = self.condition and self.condition.to(*args, **kwargs)
        return ImageBatch(self.images.to(*args, **kwargs), condition, self.attributes, self.rows)

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Row:
    """One image in memory."""

    pixels: list[np.ndarray]  # [h, w, channels] uint8 or uint16, one a box
    index: int  # of its record
    label: int | None
    attributes: tuple[bool, ...]


@dataclass(frozen=True)
class Wanted:
    """What is asked of a row."""

    boxes: tuple[Sides, ...]  # that the resized image covers, an array each
    cropped: bool = False  # whether each is cropped to its box, at the centre
    part: tuple[float, float, float] | None = None  # or a part of the image, as `pipeline.images.preparing.part` has it
    smallest: int = 0  # shorter side of the stored image, below which the next row takes its place

    @property
    def kept(self) -> bool:
        """Whether rows that are asked for like this are the ones to keep in memory."""
        return not (self.cropped or self.part or self.smallest)


def mirror(batch: ImageBatch) -> ImageBatch:
    """The batch of mirrors, without attributes, which may tell left from right."""
    return ImageBatch(batch.images.flip(-1), batch.condition, rows=batch.rows)


class Images:
    """One split of a recipe's images. Its length is the source's; a row is decoded when it is first read.

    A split whose pixels fit into 1 GiB is decoded once and kept (`in_memory`); worker processes do not help it.
    A broken row is named in `broken` and gives way to the next readable one, the same one every time; when more than
    `data.tolerate` have been met by this process, reading stops with a ValueError that names them.

    With `captions` a batch's condition holds the features of a caption of each image that is shown, also where it takes
    the place of a broken one: of the first, or in `batch` and with seeds of one that is drawn by the row's seed.
    """

    def __init__(self, data: Data, split: Split, captions: Captions | None = None):
        self.data, self.split, self.captions = data, split, captions
        self.source = build("datasets", data.source, split=split)
        self.boxes = {data.sides}  # for which a row is kept in memory; not those that are drawn
        if split == "train" and data.shorter_sides[0] == data.shorter_sides[1]:
            self.boxes.add(data.box(data.shorter_sides[0]))
        pixel = CHANNELS[data.channels] * data.depth // 8  # bytes
        self.in_memory = len(self.source) * pixel * sum(height * width for height, width in self.boxes) <= IN_MEMORY
        self.broken: list[str] = []
        self._kept: dict[tuple[int, Sides], Row] = {}  # by index and box
        self._next: dict[int, int] = {}
        self._lost: Counter[int | None] = Counter()  # broken rows, by label
        for index, message in self.source.broken().items():  # known before the first step, so refused before it
            self._leave_out(index, message)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def class_names(self) -> list[str]:
        """Label i is called class_names[i]; empty when there are no classes."""
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def attribute_names(self) -> list[str]:
        """What an image has or has not; empty when the collection says nothing of it."""
        return self.source.attribute_names

    def batch(self, indices: Tensor, seeds: Tensor) -> ImageBatch:
        """Rows `indices` [B] for training; size, cropping and mirroring of row i are functions of `seeds[i]` alone.

        The held-out split is never augmented.
        """
        if self.split == "held_out":
            return self.plain(indices)
        draws = None
        if self.data.crop == "part":
            return self._drawn(self._parts(indices, seeds), seeds)
        if self.data.crop == "random":
            draws = torch.stack([uniform_by_seed(seeds, "crop across"), uniform_by_seed(seeds, "crop down")], 1)
        least, most = self.data.shorter_sides
        sides = least + (uniform_by_seed(seeds, "shorter side") * (most - least + 1)).long().clamp(max=most - least)
        boxes = [self.data.box(side) for side in sides.tolist()]
        return self._drawn(self._read(indices, boxes, draws, self.data.smallest), seeds)

    def _drawn(self, batch: ImageBatch, seeds: Tensor) -> ImageBatch:
        """The batch with a mirror and a caption that are drawn."""
        if self.data.flip:
            mirrored = uniform_by_seed(seeds, "flip") < 0.5
            batch.images[mirrored] = batch.images[mirrored].flip(-1)
        return self._with_captions(batch, seeds)

    def _with_captions(self, batch: ImageBatch, seeds: Tensor | None = None) -> ImageBatch:
        if self.captions is None:
            return batch
        labels = None if batch.condition is None else batch.condition.labels
        return replace(batch, condition=replace(self.captions.condition(batch.rows, seeds), labels=labels))

    def plain(self, indices: Tensor, flip: bool = False) -> ImageBatch:
        """Rows `indices` [B] without augmentation, cropped at the centre; all mirrored with `flip`."""
        batch = self._with_captions(self._plain(indices))
        return mirror(batch) if flip else batch

    def _plain(self, indices: Tensor) -> ImageBatch:
        return self._read(indices, [self.data.sides] * len(indices))

    def views(self, indices: Tensor, crops: Sequence[float] = (), flip: bool = False) -> Iterator[ImageBatch]:
        """Rows `indices` [B] without augmentation, a batch a view; each is followed by its mirror with `flip`.

        Without `crops` there is one, `plain`. With them, every factor gives five: the image is resized until it covers
        a box of sides int(factor * side), and of that box at its centre the centre is taken and the four corners.
        With flips this is the ten-crop of LlamaGen (arXiv:2406.06525, extract_codes_c2i.py).
        """
        yield from map(self._with_captions, self._views(indices, crops, flip))

    def _views(self, indices: Tensor, crops: Sequence[float], flip: bool) -> Iterator[ImageBatch]:
        for batch in self._crops(indices, crops) if crops else [self._plain(indices)]:
            yield batch
            if flip:
                yield mirror(batch)

    def chosen(
        self,
        indices: Tensor,
        views: Tensor,
        crops: Sequence[float] = (),
        flip: bool = False,
        seeds: Tensor | None = None,
    ) -> ImageBatch:
        """Rows `indices` [B], of each its view number `views[i]` in the order of `views`."""
        pixels: Tensor | None = None
        for number, batch in enumerate(self._views(indices, crops, flip)):
            mine = (views == number)[:, None, None, None]
            pixels = batch.images if pixels is None else torch.where(mine, batch.images, pixels)
        return self._with_captions(ImageBatch(pixels, batch.condition, rows=batch.rows), seeds)

    @cached_property
    def _fingerprint(self) -> str:
        made = [self.data.size, self.data.resize]
        made += [word for word in (self.data.channels, self.data.depth) if word not in ("rgb", 8)]
        return f"{mix(self.source.fingerprint(), self.split, *made):016x}"

    def fingerprint(self) -> str:
        """A hash of what `plain` returns: the source's records, when first asked for, and how they are made ready."""
        return self._fingerprint

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}  # a worker process decodes what it reads

    def _read(
        self, indices: Tensor, boxes: Sequence[Sides], draws: Tensor | None = None, smallest: int = 0
    ) -> ImageBatch:
        """Crops of rows that cover `boxes`: at the centre, or at `draws` [B, 2]."""
        wanted = [Wanted((box,), smallest=smallest) for box in boxes]
        rows = [self._row(index, one) for index, one in zip(indices.tolist(), wanted, strict=True)]
        places = [None] * len(rows) if draws is None else draws.tolist()
        return self._ready([crop(row.pixels[0], self.data.sides, place) for row, place in zip(rows, places)], rows)

    def _parts(self, indices: Tensor, seeds: Tensor) -> ImageBatch:
        """Parts of rows, of drawn sizes at drawn places."""
        least, most = self.data.part
        fraction = least + (most - least) * uniform_by_seed(seeds, "part")
        places = (uniform_by_seed(seeds, f"crop {way}") for way in ("across", "down"))
        drawn = torch.stack([fraction, *places], 1).tolist()
        wanted = [Wanted((self.data.sides,), part=tuple(one), smallest=self.data.smallest) for one in drawn]
        rows = [self._row(index, one) for index, one in zip(indices.tolist(), wanted, strict=True)]
        return self._ready([row.pixels[0] for row in rows], rows)

    def _crops(self, indices: Tensor, factors: Sequence[float]) -> Iterator[ImageBatch]:
        boxes = tuple(tuple(int(factor * side) for side in self.data.sides) for factor in factors)
        rows = [self._row(index, Wanted(boxes, cropped=True)) for index in indices.tolist()]
        for number, place in product(range(len(boxes)), FIVE):
            yield self._ready([crop(row.pixels[number], self.data.sides, place) for row in rows], rows)

    def _ready(self, pixels: list[np.ndarray], rows: list[Row]) -> ImageBatch:
        images = from_pixels(np.stack(pixels))
        condition = Condition(torch.tensor([row.label for row in rows])) if self.num_classes else None
        attributes = torch.tensor([row.attributes for row in rows]) if self.attribute_names else None
        return ImageBatch(images, condition, attributes, torch.tensor([row.index for row in rows]))

    def _row(self, index: int, wanted: Wanted) -> Row:
        """A row as `_decode` makes it, or the next one that can be read and is not too small; kept where it can be."""
        index, small = self._next.get(index, index), False
        if wanted.kept and (index, wanted.boxes[0]) in self._kept:
            return self._kept[index, wanted.boxes[0]]
        for following in range(index, index + len(self)):
            try:
                row = self._decode(following % len(self), wanted)
            except BrokenImage as error:
                self._leave_out(following % len(self), str(error))
                continue
            if row is None:
                small = True
                continue
            if following != index and not small:
                self._next[index] = following % len(self)
            return row
        what = f"has {wanted.smallest} pixels per side (data.smallest)" if small else "can be read"
        raise ValueError(f"data.source: not one image {what}")

    def _decode(self, index: int, wanted: Wanted) -> Row | None:
        """The image as it is wanted; cropped at the centre where crops are not random. None where it is too small."""
        record, boxes = self.source.read(index), wanted.boxes
        if min(record.image.size) < wanted.smallest:
            return None
        try:
            image = convert(record.image, self.data.channels, self.data.depth)
            if wanted.part is None:
                pixels = [pixels_of(fit(image, box, self.data.resize)) for box in boxes]
            else:
                pixels = [pixels_of(part(image, wanted.part, boxes[0], self.data.resize))]
        except BrokenImage:
            raise
        except DAMAGED as error:
            raise BrokenImage(f"{record.name}: {' '.join(str(error).split())}") from error
        if wanted.cropped or self.data.crop != "random":
            pixels = [crop(array, box) for array, box in zip(pixels, boxes)]
        row = Row([np.ascontiguousarray(array) for array in pixels], index, record.label, record.attributes)
        if self.in_memory and wanted.kept and boxes[0] in self.boxes:
            self._kept[index, boxes[0]] = row
        return row

    def _leave_out(self, index: int, message: str) -> None:
        """ValueError where more rows are broken than are tolerated, or all those of a class."""
        if message not in self.broken:
            self.broken.append(message)
            log.warning("left out %s", message)
            self._lost[self.source.label_of(index)] += 1
        if len(self.broken) > self.data.tolerate:
            raise ValueError(
                f"{len(self.broken)} broken, data.tolerate is {self.data.tolerate}: {'; '.join(self.broken[:5])}"
            )
        for label, lost in self._lost.items():
            if label is not None and lost == self._class_counts[label]:
                raise ValueError(
                    f"data.source: no image of the class {self.class_names[label]!r} can be read: {message}; mend them,"
                    " or take the class out"
                )

    @cached_property
    def _class_counts(self) -> list[int]:
        return self.source.class_counts()
