"""What a tokenizer can do beside encoding and decoding, as one record that shared code reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.nn.image_size import ImageShape


@dataclass(frozen=True)
class Capabilities:
    """Capabilities of a tokenizer with given constructor arguments; see `Tokenizer.capabilities`."""

    parts: tuple[str, ...] = ("all", "encoder", "decoder")  # what a phase can train
    parts_without_pixels: tuple[str, ...] = ()  # those that train without a loss of pixels; forward: pixels=False
    branches: Mapping[str, ImageShape] = field(default_factory=dict)  # of their views; see pipeline.nn.branched
    features: tuple[str, ...] = ()  # names of the inner features that `forward` returns for losses
    prefixes: bool = False  # `render` makes images of the first few tokens, too
    transforms: bool = False  # `forward` takes the `transform` of a map
    projection_width: int | None = None  # see pipeline.nn.class_projection: channels that `projection` reads
    embedding_width: int | None = (
        None  # channels of the image's embedding that it predicts, the feature image_embedding
    )
    semantic_width: int | None = (
        None  # channels of the teacher's features that it rebuilds, the feature rebuilt_semantic
    )
    captions: tuple[str, ...] = ()  # "encoder" and "decoder": the halves that read an image's caption, and need one
    frames: int = 1  # of what it reads: 1 for images, which is what the line has, else clips
    own_rate: tuple[str, ...] = ()  # modules that learn at the rate `new` of a loop that states it
    needs_stand_in: bool = False  # see pipeline.vision.frozen_encoder: its frozen network has no weights yet

    def compared_shape(self, part: str, images: ImageShape) -> ImageShape:
        """Channels, height and width of what is compared in a phase which trains `part`, given those of images."""
        return self.branches.get(part, images)
