"""What a tokenizer can do beside encoding and decoding, as one record that shared code reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Capabilities:
    """Capabilities of a tokenizer with given constructor arguments; see `Tokenizer.capabilities`."""

    parts: tuple[str, ...] = ("all", "encoder", "decoder")  # what a phase can train
    parts_without_pixels: tuple[str, ...] = ()  # those that train without a loss of pixels; forward: pixels=False
    branches: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # see pipeline.nn.branched: channels and side
    features: tuple[str, ...] = ()  # names of the inner features that `forward` returns for losses
    prefixes: bool = False  # `render` makes images of the first few tokens, too
    transforms: bool = False  # `forward` takes the `transform` of a map
    projection_width: int | None = None  # see pipeline.nn.class_projection: channels that `projection` reads
    needs_stand_in: bool = False  # see pipeline.vision.frozen_encoder: its frozen network has no weights yet

    def compared_shape(self, part: str, image_size: int) -> tuple[int, int]:
        """Channels and side of the images that are compared in a phase which trains `part`."""
        return self.branches.get(part, (3, image_size))
