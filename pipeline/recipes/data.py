"""The section `data` of a recipe: which images, and how they are prepared."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pipeline.components import Node
from pipeline.ranges import FractionAboveZero, RangedFields, Whole
from pipeline.recipes.field_metadata import ONLY_SPEED, slot
from pipeline.validation import Range, SettingError

Side = Annotated[int, Range(1, 2**14)]  # of an image, in pixels


@dataclass
class Data(RangedFields):
    """Which images, and how they are prepared: RGB [3, size, size] in [-1, 1]."""

    source: Node = field(metadata=slot("datasets"))  # slot datasets
    size: Side  # pixels per side, after cropping to a square
    crop: Literal["center", "random", "part"] = "center"  # of training images; all others are cropped at the center
    part: tuple[FractionAboveZero, FractionAboveZero] = (
        0.5,
        1.0,
    )  # crop=part: of the shorter side, drawn, then resized
    smallest: Whole = 0  # shorter side below which a training image gives way to the next one; codes are of all
    shorter_side: Side | tuple[Side, Side] | None = (
        None  # of training images before the crop; [256, 320]: drawn; null: size
    )
    resize: Literal["bicubic", "lanczos", "bilinear", "box", "nearest"] = "bicubic"  # filter
    flip: bool = False  # mirror each training image with probability 0.5
    tolerate: Whole = 0  # unreadable files that are skipped before the run stops
    workers: Whole = field(default=0, metadata=ONLY_SPEED)  # processes that read images for each that computes; 0: it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part[0] > self.part[1]:
            raise SettingError("part", f" is {list(self.part)}; give the smaller one first")
        if self.crop == "part" and self.shorter_side is not None:
            raise SettingError("shorter_side", " is of crops of one size; leave it out, or set data.crop=random")
        least, most = self.shorter_sides
        if not self.size <= least <= most:
            raise SettingError(
                "shorter_side", f" is {self.shorter_side}; give one number or two in order, {self.size} (size) or more"
            )

    @property
    def shorter_sides(self) -> tuple[int, int]:
        """The least and the largest shorter side of a training image before its crop."""
        if isinstance(self.shorter_side, tuple):
            return self.shorter_side
        return (self.shorter_side or self.size,) * 2

    @property
    def preparation(self) -> "Data":
        """How images are made ready, without where they lie: a result depends on this, and on what the images are."""
        return replace(self, source={})
