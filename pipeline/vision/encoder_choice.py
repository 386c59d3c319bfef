"""The frozen encoder that a tokenizer's recipe names, and what it gives of images of a size, known without building."""

from pipeline import components
from pipeline.components import Arguments, Node
from pipeline.nn.image_size import Sides
from pipeline.ranges import ImageSize
from pipeline.vision.frozen_encoder import ENCODERS, FrozenEncoder

DERIVED = ("image_size",)  # which a recipe may not state


def choose_encoder(
    node: Node, image_size: ImageSize, argument: str = "frozen_encoder"
) -> tuple[type[FrozenEncoder], Arguments]:
    """The class of the node and all of its arguments; ValueError that begins with `argument` where they are wrong."""
    encoder, arguments = components.choose(ENCODERS, node, DERIVED, argument)
    return encoder, arguments | {"image_size": image_size}


def tapped_map(node: Node, image_size: ImageSize, argument: str = "frozen_encoder") -> tuple[int, Sides]:
    """Channels and grid of the one map that the encoder of the node gives; ValueError where it gives several."""
    encoder, arguments = choose_encoder(node, image_size, argument)
    maps = encoder.layout(arguments)
    if len(maps) > 1:
        raise ValueError(f"one layer of {argument} is read, and {len(maps)} taps are given; name one")
    return maps[0]
