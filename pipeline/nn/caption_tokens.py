"""Captions in the sequence of a tokenizer's transformer."""

from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.nn.embeddings import learned_vectors


@dataclass(frozen=True)
class CaptionShape:
    """Places of a caption's features, and channels of a place with those of all layers joined."""

    tokens: int
    channels: int


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


def caption_features(condition: Condition | None, shape: CaptionShape, what: str) -> Tensor:
    """The features [B, T, channels] of the captions in a condition; ValueError where it has none, or others than these.

    `what` names the reader in the message.
    """
    text = None if condition is None else condition.text
    if text is None:
        raise ValueError(f"{what} reads captions, and was given none; give it a Condition whose text is their features")
    wanted, given = (shape.tokens, shape.channels), tuple(text.shape[1:])
    if given != wanted:
        sizes = (f"{places} places of {channels} channels" for places, channels in (wanted, given))
        raise ValueError("{} reads captions of {}, not {}; take the encoder it was trained with".format(what, *sizes))
    return text
