"""The section `data` of a recipe: which images, and how they are prepared."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pipeline.components import Node
from pipeline.nn.image_size import Sides, sides_of, size_text
from pipeline.ranges import FractionAboveZero, RangedFields, Whole
from pipeline.recipes.field_metadata import ONLY_SPEED, slot
from pipeline.validation import Range, SettingError

Side = Annotated[int, Range(1, 2**14)]  # of an image, in pixels
Fractions = tuple[FractionAboveZero, FractionAboveZero]  # the least and the largest
CHANNELS = {"rgb": 3, "grey": 1, "rgba": 4}


@dataclass
class Data(RangedFields):
    """Which images, and how they are prepared: [channels, height, width] in [-1, 1]."""

    source: Node = field(metadata=slot("datasets"))  # slot datasets
    size: Side | tuple[Side, Side]  # pixels after the crop: of a side of a square, or [height, width]
    channels: Literal["rgb", "grey", "rgba"] = "rgb"  # what is transparent is white, and stays transparent in rgba
    depth: Literal[8, 16] = 8  # bits of a pixel's channel that are read and written; 16: grey images alone
    crop: Literal["center", "random", "part"] = "center"  # of training images; all others are cropped at the center
    part: Fractions = (0.5, 1.0)  # crop=part: of the largest crop that fits into the image, drawn, then resized
    smallest: Whole = 0  # shorter side below which a training image gives way to the next one; codes are of all
    shorter_side: Side | tuple[Side, Side] | None = None  # before the crop; [256, 320]: drawn; null: that of size
    resize: Literal["bicubic", "lanczos", "bilinear", "box", "nearest"] = "bicubic"  # filter
    flip: bool = False  # mirror each training image with probability 0.5
    tolerate: Whole = 0  # unreadable files that are skipped before the run stops
    workers: Whole = field(default=0, metadata=ONLY_SPEED)  # processes that read images for each that computes; 0: it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.size, int):  # a square is one number, however it is given
            self.size = self.size[0] if self.size[0] == self.size[1] else tuple(self.size)
        if self.depth == 16 and self.channels != "grey":
            raise SettingError(
                "depth", f" is 16, and the channels are {self.channels}; set data.channels=grey, or depth=8"
            )
        if self.part[0] > self.part[1]:
            raise SettingError("part", f" is {list(self.part)}; give the smaller one first")
        if self.crop == "part" and self.shorter_side is not None:
            raise SettingError("shorter_side", " is of crops of one size; leave it out, or set data.crop=random")
        least, most = self.shorter_sides
        if not min(self.sides) <= least <= most:
            raise SettingError(
                "shorter_side",
                f" is {self.shorter_side}; give one number or two in order, {min(self.sides)} (size) or more",
            )

    @property
    def sides(self) -> Sides:
        """Height and width in pixels."""
        return sides_of(self.size)

    @property
    def image_size(self) -> int | list[int]:
        """The size as constructors take it: one number for a square, else [height, width]."""
        return self.size if isinstance(self.size, int) else list(self.size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return (CHANNELS[self.channels], *self.sides)

    @property
    def shape_text(self) -> str:
        """Size, and channels and depth where they are not the usual ones: `48x64 px, grey of 16 bits`."""
        channels = "" if self.channels == "rgb" else f", {self.channels}"
        return f"{size_text(self.size)} px{channels}{' of 16 bits' if self.depth == 16 else ''}"

    @property
    def shorter_sides(self) -> tuple[int, int]:
        """The least and the largest shorter side of the box that a training image covers before its crop."""
        if isinstance(self.shorter_side, tuple):
            return self.shorter_side
        return (self.shorter_side or min(self.sides),) * 2

    def box(self, shorter: int) -> Sides:
        """Height and width of the box of the images' aspect ratio whose shorter side is given."""
        return tuple(round(side * shorter / min(self.sides)) for side in self.sides)

    @property
    def preparation(self) -> "Data":
        """How images are made ready, without where they lie: a result depends on this, and on what the images are."""
        return replace(self, source={})
