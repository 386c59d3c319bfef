"""Captions in the sequence of a tokenizer's transformer."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.code import Condition, TextSpec
from pipeline.nn.conditions import check_layer, pick_layer, text_spec
from pipeline.nn.embeddings import learned_vectors


class CaptionTokens(nn.Module):
    """A caption's features [B, T, channels] as tokens [B, T, width] of a sequence.

    A linear layer and learned positions: Kim et al., arXiv:2501.07730. Padded places are tokens like any other.
    """

    def __init__(self, text: TextSpec, width: int):
        super().__init__()
        self.projection = nn.Linear(text.dim * text.layers, width)
        self.positions = learned_vectors(text.tokens, width)

    def forward(self, text: Tensor) -> Tensor:
        return self.projection(text) + self.positions


def check_captions(kind: str, arguments: Mapping[str, Any]) -> None:
    """ValueError where a tokenizer of this kind, which reads captions, has none, or not the layer that it reads."""
    if text_spec(arguments) is None:
        raise ValueError(f"{kind} reads captions, and the recipe has no section text; add one with an encoder")
    check_layer(arguments)


def caption_features(condition: Condition | None, arguments: Mapping[str, Any], what: str) -> Tensor:
    """The features [B, T, channels] of the captions in a condition that a model with these arguments reads.

    ValueError where it has none, or others than the model was built for. `what` names the reader in the message.
    """
    if condition is None or condition.text is None:
        raise ValueError(f"{what} reads captions, and was given none; give it a Condition whose text is their features")
    spec = text_spec(arguments)
    wanted, given = (spec.tokens, spec.dim * spec.layers), tuple(condition.text.shape[1:])
    if given != wanted:
        sizes = (f"{places} places of {channels} channels" for places, channels in (wanted, given))
        raise ValueError("{} reads captions of {}, not {}; take the encoder it was trained with".format(what, *sizes))
    return pick_layer(condition, arguments).text
