"""The settings of one training: steps, batch, rates, optimiser, averages and checkpoints."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from pipeline.components import Node
from pipeline.ranges import Count, Fraction, FractionBelowOne, NotNegative, RangedFields, Whole
from pipeline.recipes.field_metadata import ONLY_SPEED, slot
from pipeline.validation import SettingError

NEW = "new"  # the rate of what is new in a player that was trained before, or has a rate of its own
Schedule = Literal["constant", "cosine", "linear"]


@dataclass
class Rate(RangedFields):
    """The learning rate of one player; what is left out is as the loop says.

    Its steps count from the first one at which the player learns: those of a critic from its own start.
    """

    peak: NotNegative
    first: Fraction | None = None  # fraction of the peak at which the warm-up begins
    warmup: Whole | None = None  # steps from there to the peak
    hold: Whole | None = None  # steps at the peak, before it falls
    schedule: Schedule | None = None  # by which it falls
    end: Count | None = None  # step at which it has fallen to `final`; where the loop has none either, the last one
    final: Fraction | None = None  # fraction of the peak that is left then


@dataclass
class EarlyStop(RangedFields):
    """A training ends when the loss of held-out images no longer falls, and its best average weights are kept."""

    patience: Count = 5  # losses in a row without a smaller one, after which training ends
    every: Count = 500  # steps between held-out losses


def adamw() -> Node:
    """The optimiser where none is stated."""
    return {"kind": "adamw"}


@dataclass
class Loop(RangedFields):
    """Steps, batch, rates, optimiser and checkpoints of a training; steps are optimiser steps, the batch is global."""

    steps: Whole
    lr: dict[str, NotNegative | Rate]  # by player (tokenizer, critic, network; new: its new parts): peak, or a section
    batch: Count = 64  # images per step, over all processes
    accumulate: Count = field(default=1, metadata=ONLY_SPEED)  # micro-batches per step; `check` names what it changes
    first: Fraction = 0.0  # fraction of the peak rate at which the warm-up begins
    warmup: Whole = 0  # steps from there to the full rate
    hold: Whole = 0  # steps at the full rate, before it falls
    schedule: Schedule = "constant"  # by which the rate falls
    end: Count | None = None  # step at which it has fallen; null: the last one
    final: Fraction = 0.0  # fraction of the peak rate at which cosine and linear end
    optimizer: Node | dict[str, Node] = field(default_factory=adamw, metadata=slot("optimizers"))  # or by player
    weight_decay: NotNegative | dict[str, NotNegative] = 0.0  # of matrices and kernels, for all players or by player
    undecayed: tuple[str, ...] = ()  # [embed]: matrices and kernels whose name holds one of these do not decay
    clip: NotNegative = 1.0  # largest norm of a player's gradient; 0: no clipping
    ema: FractionBelowOne | dict[str, FractionBelowOne] = 0.999  # of the average that is kept, or by player; 0: none
    ema_warmup: bool = True  # a smaller decay at first, (1 + step) / (10 + step); false: the same at every step
    skip: Whole = 10  # consecutive steps with non-finite gradients that are skipped before the run stops
    save_every: Whole = field(default=1000, metadata=ONLY_SPEED)  # steps between checkpoints; 0: the last step alone
    keep: Count = field(default=2, metadata=ONLY_SPEED)  # checkpoints, the newest
    log_every: Count = field(default=50, metadata=ONLY_SPEED)  # steps between lines of metrics.jsonl
    preview_every: Whole = field(default=0, metadata=ONLY_SPEED)  # steps between pictures and held-out losses; 0: none
    early_stop: EarlyStop | None = None  # {patience: 5}: end when the held-out loss no longer falls; null: all steps
    compile: bool = field(default=False, metadata=ONLY_SPEED)  # the players, by torch.compile
    checkpointing: bool = field(default=False, metadata=ONLY_SPEED)  # compute blocks again in place of keeping them

    def __post_init__(self) -> None:
        super().__post_init__()
        if "kind" not in self.optimizer and not all(isinstance(node, dict) for node in self.optimizer.values()):
            self.optimizer = adamw() | self.optimizer  # arguments of a node that leaves out its kind
        if self.batch % self.accumulate:
            raise SettingError(
                "accumulate", f" is {self.accumulate}, which does not divide the batch of {self.batch}; give a divisor"
            )

    def rate_of(self, player: str) -> Rate:
        """The rate of a player with nothing left out, but for an `end` that is the last step."""
        rate = self.lr[player]
        rate = rate if isinstance(rate, Rate) else Rate(rate)
        left_out = {f.name: getattr(self, f.name) for f in fields(rate) if getattr(rate, f.name) is None}
        return replace(rate, **left_out)

    def optimizer_of(self, player: str) -> Any:
        """The node of a player's optimiser."""
        return self.optimizer if "kind" in self.optimizer else self.optimizer[player]

    def average_of(self, player: str) -> float:
        """The decay of a player's running average, 0 (the last weights) where a mapping does not name it."""
        return self.ema.get(player, 0.0) if isinstance(self.ema, dict) else self.ema

    def decay_of(self, player: str) -> float:
        """The weight decay of a player, 0 where a mapping does not name it."""
        return self.weight_decay.get(player, 0.0) if isinstance(self.weight_decay, dict) else self.weight_decay
