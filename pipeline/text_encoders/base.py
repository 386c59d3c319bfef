"""What every text encoder promises: features of captions, and their geometry known before it is built."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin
from torch import Tensor

from pipeline.code import Condition, TextSpec
from pipeline.components import Arguments
from pipeline.nn.cast_warning import WithoutCastWarning
from pipeline.nn.entry_points import EntryPoints
from pipeline.nn.own_weight_files import OwnWeightFiles
from pipeline.ranges import RangedArguments
from pipeline.validation import SettingError
from pipeline.vision.named_model import NamedModel


class TextEncoder(RangedArguments, EntryPoints, OwnWeightFiles, WithoutCastWarning, ConfigMixin):
    """Captions to features; frozen in every stage, and saved as a folder of its own.

    Subclasses write `geometry` and `encode`. One that has no published weights sets `given_weights = False` and
    writes `fit`, which `encode_text` calls once, before it saves the encoder; no other stage trains one.
    """

    entry_points = ("encode",)
    given_weights: bool = True  # built anew it is trained already
    run_arguments: tuple[str, ...] = ()  # may differ from those of a folder that training starts from

    @classmethod
    @abstractmethod
    def geometry(cls, arguments: Arguments) -> TextSpec:
        """The spec these constructor arguments give, without building; ValueError where they do not fit together."""

    @classmethod
    def named_models(cls, arguments: Arguments) -> dict[str, NamedModel]:
        """The models whose weights it begins with when it is built anew, by the argument that names each."""
        return {}

    @classmethod
    def lacks(cls) -> str | None:
        """What is to be installed before it can be built, and how; None where nothing is."""
        return None

    @classmethod
    def identity(cls, arguments: Arguments) -> str | None:
        """A hash of the weights that it begins with when it is built anew, fetched where they are not here; None where
        there are none."""
        return None

    @property
    def spec(self) -> TextSpec:
        """The geometry of the features of one caption."""
        return self.geometry(Arguments.from_config(self))

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Condition:
        """Features of prompts, float32, on the encoder's device: `text` [B, T, layers * dim] with its `text_mask`
        [B, T], and `pooled` [B, P] where `spec.pooled` is P.

        T is `spec.tokens` always. Features of a place without a token are zero. Every prompt has one place at least
        that holds a token, the empty one too, and its features depend on no other prompt. A longer prompt is cut.
        """

    def fit(self, captions: Sequence[str], seed: int) -> str:
        """Train on captions where there are no published weights; returns a line that says by what, and how long.

        The weights after it are a function of the constructor's arguments, `captions` and `seed`, up to rounding.
        """
        raise ValueError(f"a {type(self).__name__} has its weights already; it is not trained on captions")


def finish(layers: Sequence[Tensor], mask: Tensor, pooled: Tensor | None = None) -> Condition:
    """The condition of hidden states [B, T, dim] of several layers, joined in their order, zero where `mask` is
    False."""
    text = torch.cat([layer.float() for layer in layers], dim=-1)
    mask = mask.bool()
    return Condition(None, text.masked_fill(~mask[..., None], 0), mask, None if pooled is None else pooled.float())


def check_layers(layers: Sequence[int], depth: int) -> list[int]:
    """The numbers of layers, 0 for what the first block reads and `depth` or -1 for the last; ValueError for others."""
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise SettingError(
                "layers", f": there is no layer {layer} of {depth}; they are 0 to {depth}, or -1 for the last"
            )
    return [layer % (depth + 1) for layer in layers]
