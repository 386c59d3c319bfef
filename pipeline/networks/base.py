"""What every network promises: a prediction for noisy codes, no sampling and no loss."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import ConfigMixin
from torch import Tensor

from pipeline.code import Condition
from pipeline.components import Arguments
from pipeline.nn.cast_warning import WithoutCastWarning
from pipeline.nn.class_token import count_token_rows
from pipeline.nn.entry_points import EntryPoints
from pipeline.ranges import RangedArguments
from pipeline.validation import SettingError

Role = Literal["denoiser", "causal", "masked"]  # see Network.role
Tapped = tuple[Tensor, list[Tensor]]  # a prediction, and hidden states on the way to it


class Network(RangedArguments, EntryPoints, WithoutCastWarning, ConfigMixin):
    """A generator's network. Its shape (grid, dim, vocab, ...) is derived, never stated.

    A constructor takes those of the derived values that it needs, under these names; one that takes `class_token`, a
    width, reads and predicts such a token below the code, see `state_shape`.

    `role` says what it predicts, and so which objectives can train it: a `denoiser` predicts from a noisy code, a
    `causal` network the next id from those before it, a `masked` one all ids from those that are known.
    """

    entry_points = ("tap_blocks",)
    role: Role = "denoiser"
    run_arguments: tuple[str, ...] = ("class_drop",)  # may differ from those of a folder that training starts from
    class_names: dict[int, str] | None = None  # by label, in the last pipeline it was a part of; not saved

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """ValueError where these constructor arguments, derived ones included, do not fit; known without building."""

    @abstractmethod
    def forward(
        self, hidden_states: Tensor, time: Tensor, condition: Condition | None = None, taps: Sequence[int] = ()
    ) -> Tensor | Tapped:
        """hidden_states [B, N, dim] at noise levels `time` [B] (float32, 1 is pure noise) to [B, N, outputs * dim].

        With a class token both have its rows below, as `join_token` puts them there. With `taps`,
        numbers of blocks (1 is the first), it returns (prediction, hidden states after these blocks, in the order of
        `taps`), each [B, M, width]: a row per patch, where codes are read in patches, and before them one of the class
        token where there is one. Networks of ids take ids and
        neither time nor taps; their inputs and outputs are in their own docstrings.
        """

    def tap_blocks(
        self, hidden_states: Tensor, time: Tensor, condition: Condition | None, taps: Sequence[int]
    ) -> list[Tensor]:
        """As `forward`, the hidden states after the blocks `taps` alone; blocks behind the last of them do not run."""
        raise ValueError(f"a {type(self).__name__} has no hidden states of patches")

    @property
    def state_shape(self) -> tuple[int, int]:
        """Of the noisy state of one image that it reads, [N, dim]: the code, and below it the class token's rows."""
        config = self.config
        return math.prod(config.grid) + count_token_rows(config.get("class_token", 0), config.dim), config.dim

    def null(self, condition: Condition) -> Condition:
        """The unconditional condition of the same batch: the null label."""
        return Condition(labels=torch.full_like(condition.labels, self.config.num_classes))

    def labels(self, condition: Condition | None, batch: int, device: torch.device) -> Tensor:
        """The label of every image, [B] int64: the null one where no condition is given.

        Raises ValueError when an unconditional network is given labels.
        """
        labels = None if condition is None else condition.labels
        if labels is None:
            return torch.full((batch,), self.config.num_classes, dtype=torch.int64, device=device)
        if not self.config.num_classes:
            raise ValueError("this network was built without classes (num_classes=0); call it without labels")
        return labels


def check_widths(arguments: Arguments, prefix: str = "") -> None:
    """ValueError where the width of a transformer, or of a part whose arguments have a prefix, does not divide."""
    width, heads = arguments[f"{prefix}width"], arguments[f"{prefix}heads"]
    if width % heads:
        raise ValueError(f"{prefix}width {width} is not divisible by {prefix}heads {heads}; give a multiple of {heads}")
    if int(width * arguments.feed_forward_ratio) < 1:
        ratio = arguments.feed_forward_ratio
        raise SettingError(
            "feed_forward_ratio", f" is {ratio:g}, of a {prefix}width of {width}; give {1 / width:g} or more"
        )


def check_taps(taps: Sequence[int], depth: int) -> None:
    """ValueError where `taps` name a block that is not there."""
    for tap in taps:
        if not 1 <= tap <= depth:
            raise ValueError(f"there is no block {tap} to tap; the network has blocks 1 to {depth}")


def check_axes(kind: str, grid: Sequence[int]) -> None:
    """ValueError where a network for maps and sequences is to work on anything else."""
    if len(grid) not in (1, 2):
        raise ValueError(f"{kind} works on grids of one or two axes, not on {list(grid)}")
