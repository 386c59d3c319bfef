"""The section `text` of a recipe: the frozen encoder of captions, and how its features are stored."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.code import TextSpec
from pipeline.components import Node, check
from pipeline.ranges import Count, RangedFields
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.field_metadata import ONLY_SPEED, slot
from pipeline.validation import at


@dataclass
class Text(RangedFields):
    """Captions of images as features of a frozen text encoder, each distinct caption encoded once and stored."""

    encoder: Node = field(metadata=slot("text_encoders"))  # slot text_encoders
    precision: Literal["fp32", "bf16", "fp16"] = "fp16"  # of the stored features
    batch: Count = field(default=64, metadata=ONLY_SPEED)  # captions at a time
    shard: Count = field(default=16384, metadata=ONLY_SPEED)  # captions in one file

    @property
    def identity(self) -> str | None:
        """Of the encoder's published weights, on which all that is made of captions depends; None where it has none."""
        cls, arguments = check("text_encoders", self.encoder, DERIVED["text_encoders"], "text.encoder")
        return cls.identity(arguments)

    @property
    def spec(self) -> TextSpec:
        """Of the features of one caption, without building the encoder; ValueError where its node is wrong."""
        cls, arguments = check("text_encoders", self.encoder, DERIVED["text_encoders"], "text.encoder")
        with at("text.encoder"):
            return cls.geometry(arguments)
