"""Shapes that are drawn when they are read: a class by form, attributes of colour, place and size, and captions."""

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline.datasets.base import Record, Source, Split
from pipeline.draws import mix
from pipeline.ranges import Count, Seed

COLOURS = {"red": (214, 48, 49), "green": (46, 160, 67), "blue": (41, 98, 204), "yellow": (235, 190, 40)}
FINER = 4  # times, before edges are averaged
FORMS = {  # corners on the unit circle, in turns; a circle has none, a cross is two bars
    "circle": (),
    "square": (0.125, 0.375, 0.625, 0.875),
    "triangle": (0.25, 0.25 + 1 / 3, 0.25 + 2 / 3),
    "cross": (0.05, 0.2, 0.3, 0.45, 0.55, 0.7, 0.8, 0.95),
}


class Shapes(Source):
    """One shape an image, on a plain ground; image i of a split is a function of (seed, split, i).

    Form, colour, half of the picture it stands in, size and ground are drawn independently of each other, so that none
    of them tells of another: what a code must keep apart. Yellow shapes are none of the attributes red, green, blue.
    """

    class_names = list(FORMS)
    attribute_names = ["red", "green", "blue", "left", "top", "large", "dark_ground"]

    def __init__(
        self, images: Count = 4000, held_out: Count = 1000, size: Count = 64, seed: Seed = 0, split: Split = "train"
    ):
        self.count, self.size, self.seed, self.split = (images if split == "train" else held_out), size, seed, split

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Record:
        _, label, colour, (left, top, large, dark) = self._drawn(index)
        image = self.clip(index, 1)[0]
        attributes = (*(colour == name for name in ("red", "green", "blue")), left, top, large, dark)
        return Record(image, label, name=f"shape {index} of {self.split}", attributes=attributes)

    def clip(self, index: int, frames: int) -> list[Image.Image]:
        """So many frames of the shape of `read`, which is the first, moving to the other side of the middle."""
        draws, label, colour, (left, top, large, dark) = self._drawn(index)
        place = [0.5 + (-1 if first else 1) * draws.uniform(0.06, 0.2) for first in (left, top)]
        radius = draws.uniform(0.19, 0.26) if large else draws.uniform(0.1, 0.15)
        ground = tuple(int(level) for level in draws.integers(20, 70, 3) + (0 if dark else 160))
        passed = [number / max(frames - 1, 1) for number in range(frames)]
        places = [[at + share * (1 - 2 * at) for at in place] for share in passed]
        form = FORMS[self.class_names[label]]
        return [drawn(form, COLOURS[colour], at, radius, ground, self.size) for at in places]

    @property
    def has_captions(self) -> bool:
        return True

    def captions(self, index: int) -> tuple[str, ...]:
        """Two: "a large red circle at the top left on a dark ground", as it is drawn, and "a large red circle"."""
        _, label, colour, (left, top, large, dark) = self._drawn(index)
        what = f"a {'large' if large else 'small'} {colour} {self.class_names[label]}"
        place = f"{'top' if top else 'bottom'} {'left' if left else 'right'}"
        return f"{what} at the {place} on a {'dark' if dark else 'light'} ground", what

    def _drawn(self, index: int) -> tuple[np.random.Generator, int, str, tuple[bool, bool, bool, bool]]:
        """Draws after these, a form, a colour, and whether it is left, at the top, large and on dark ground."""
        draws = np.random.default_rng(mix(self.seed, "shapes", self.split, index))
        label, colour = int(draws.integers(len(FORMS))), list(COLOURS)[draws.integers(len(COLOURS))]
        return draws, label, colour, tuple(bool(draws.integers(2)) for _ in range(4))

    def fingerprint(self) -> str:
        return f"{mix('shapes', 1, self.seed, self.split, self.count, self.size):016x}"


def drawn(
    corners: tuple[float, ...], colour: Any, place: list[float], radius: float, ground: Any, size: int
) -> Image.Image:
    """A form about `place` (across, down), as fractions of the side, on a ground; [size, size] RGB edges smooth."""
    side = size * FINER
    sheet = Image.new("RGB", (side, side), ground)
    across, down = (fraction * side for fraction in place)
    reach, pen = radius * side, ImageDraw.Draw(sheet)
    if not corners:
        pen.ellipse((across - reach, down - reach, across + reach, down + reach), fill=colour)
    points = [
        (across + reach * math.cos(2 * math.pi * turn), down - reach * math.sin(2 * math.pi * turn)) for turn in corners
    ]
    if len(corners) == 8:  # a bar along, a bar across, each between its opposite corners
        for bar in ((0, 3, 4, 7), (1, 2, 5, 6)):
            pen.polygon([points[corner] for corner in bar], fill=colour)
    elif corners:
        pen.polygon(points, fill=colour)
    return sheet.resize((size, size), Image.Resampling.BOX)
