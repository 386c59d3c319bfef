"""What the training loop asks of what it trains."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from pipeline.draws import StepDraws


class Task(Protocol):
    """What is being trained, and how one batch trains it:

        def turns(self, batch, draws, step):
            yield "tokenizer", {"pixel": ...}     # the loop updates the tokenizer here
            yield "critic", {"hinge": ...}        # and the critic here, with all local variables still at hand

    A player is called through `self.players[name]` in its own turn (the loop puts the distributed wrapper there).
    """

    players: dict[str, nn.Module]
    metrics: dict[str, Tensor]  # of the last batch, for the log alone
    starts: Mapping[str, int]  # the first step at which a player learns, where that is not step 0
    judges: Collection[str]  # players that another one's turn runs, with weights frozen
    new: Mapping[str, Collection[str]]  # names of parameters that are new in a player that was trained before
    compared: Collection[nn.Parameter]  # those at which a turn takes gradients itself

    def turns(self, batch: Any, draws: StepDraws, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield (player, weighted loss terms), one optimiser update each, in order."""

    def beside(self) -> list[nn.Module]:
        """Modules that are no part of a player, and that a turn computes by: losses, and what encodes images."""

    def held_out_terms(self, averages: Mapping[str, nn.Module], batch: Any, draws: StepDraws) -> dict[str, Tensor]:
        """The weighted terms of a batch by the averaged players, in evaluation mode; the task does not change.

        They are those of the last step, without what a critic or a teacher of hidden states adds. `draws` are of the
        last step, the same at every call.
        """
