"""Captions in the sequence of a tokenizer's transformer."""

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.nn.embeddings import learned_vectors


@dataclass(frozen=True)
class CaptionShape:
    """Places of a caption's features, and channels of a place: `dim` in each of the layers, which are joined."""

    tokens: int
    dim: int
    layers: int = 1
    layer: int | None = None  # the only one that is read, by its number among them

    @property
    def channels(self) -> int:
        """Of a place, as they are read."""
        return self.dim * (self.layers if self.layer is None else 1)


class CaptionTokens(nn.Module):
    """A caption's features [B, T, channels] as tokens [B, T, width] of a sequence.

    A linear layer and learned positions: Kim et al., arXiv:2501.07730. Padded places are tokens like any other.
    """

    def __init__(self, shape: CaptionShape, width: int):
        super().__init__()
        self.projection = nn.Linear(shape.channels, width)
        self.positions = learned_vectors(shape.tokens, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.projection(text) + self.positions


def check_captions(kind: str, shape: CaptionShape) -> None:
    """ValueError where a tokenizer of this kind, which reads captions, has none, or not the layer that it reads."""
    if not shape.tokens:
        raise ValueError(f"{kind} reads captions, and the recipe has no section text; add one with an encoder")
    if shape.layer is not None and not -shape.layers <= shape.layer < shape.layers:
        count = f"{shape.layers} layers, which are counted from 0" if shape.layers > 1 else "one layer"
        raise ValueError(f"text_layer is {shape.layer}, and the encoder of captions gives {count}; choose one or none")


def caption_features(condition: Condition | None, shape: CaptionShape, what: str) -> Tensor:
    """The features [B, T, channels] of the captions in a condition; ValueError where it has none, or others than these.

    `what` names the reader in the message.
    """
    text = None if condition is None else condition.text
    if text is None:
        raise ValueError(f"{what} reads captions, and was given none; give it a Condition whose text is their features")
    wanted, given = (shape.tokens, shape.dim * shape.layers), tuple(text.shape[1:])
    if given != wanted:
        sizes = (f"{places} places of {channels} channels" for places, channels in (wanted, given))
        raise ValueError("{} reads captions of {}, not {}; take the encoder it was trained with".format(what, *sizes))
    return text if shape.layer is None else text.chunk(shape.layers, dim=-1)[shape.layer]
