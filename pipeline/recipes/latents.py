"""The section `latents` of a recipe: the codes that the generator is trained on, stored or made at every step."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pipeline.ranges import Count, Positive, RangedFields
from pipeline.recipes.field_metadata import ONLY_SPEED
from pipeline.validation import Range, SettingError

Enlargements = tuple[Annotated[float, Range(1)], ...]


@dataclass
class Latents(RangedFields):
    """The codes that the generator is trained on."""

    store: bool = True  # false: nothing is stored, and a training encodes its images at every step
    augment: bool = False  # with store=false: images as data augments them (crop, part, shorter_side, flip)
    posterior: Literal["sample", "mode", "moments"] = "sample"  # moments: mean and std, sampled in training
    statistics: Literal["measured", "stored"] = "measured"  # mean and std of codes; stored: those it comes with
    scale: Positive | None = None  # in place of statistics: codes are multiplied by it, and not shifted
    crops: Enlargements = ()  # [1.1]: in place of the image, five crops of it at 1.1 times the size
    flip: bool = False  # also the code of every mirrored view
    class_token: str | None = None  # a vision model, or classifier, whose class feature is stored with the code
    class_token_norm: Literal["plain", "none"] = "plain"  # mean 0, std 1 over its channels; none: as the model has it
    features: bool = False  # also the features of the teachers of generator.losses, which then run once
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"  # of stored numbers
    batch: Count = field(default=64, metadata=ONLY_SPEED)
    shard: Count = field(default=8192, metadata=ONLY_SPEED)  # images per file

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and self.statistics == "stored":
            raise SettingError("scale", " is stated, and statistics=stored; leave one of them out")
        if self.features and not self.store:
            raise SettingError("features", " are stored with the codes, and store=false; leave one of them out")
        if self.augment and self.store:
            raise SettingError("augment", " is of images that are encoded at every step; set store=false, too")
        if self.augment and (self.crops or self.flip):
            raise SettingError("augment", " takes crops and mirrors as data states them; leave crops and flip out")

    @property
    def views(self) -> int:
        """Codes per image."""
        return (5 * len(self.crops) or 1) * (2 if self.flip else 1)
