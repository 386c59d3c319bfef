"""What every network promises: a prediction for noisy codes, no sampling and no loss."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import ConfigMixin
from torch import Tensor

from pipeline.code import Condition
from pipeline.nn.quiet_cast import QuietCast

Role = Literal["denoiser", "causal", "masked"]  # see Network.role


class Network(QuietCast, ConfigMixin):
    """A generator's network. Its shape (grid, dim, vocab, codebooks, num_classes, outputs) is derived, never stated.

    A constructor takes those of the derived values that it needs, under these names.

    `role` says how it is asked, and so which objectives can train it: a `denoiser` predicts from a noisy code, a
    `causal` network the next id from those before it, a `masked` one all ids from those that are known.
    """

    role: Role = "denoiser"
    of_the_run: tuple[str, ...] = ("class_drop",)  # arguments that may differ from a folder's that training starts from

    @classmethod
    def validate(cls, grid: Sequence[int], **arguments) -> None:
        """ValueError where codes on this grid and these stated arguments do not fit, known without building."""

    @abstractmethod
    def forward(self, hidden_states: Tensor, time: Tensor, condition: Condition | None = None) -> Tensor:
        """hidden_states [B, N, dim] at noise levels `time` [B] (float32, 1 is pure noise) to [B, N, outputs * dim].

        Networks of ids take ids and no time; what they are asked and answer is in their own docstring.
        """

    def null(self, condition: Condition) -> Condition:
        """The unconditional request of the same batch: the label that stands for no class."""
        return Condition(labels=torch.full_like(condition.labels, self.config.num_classes))
