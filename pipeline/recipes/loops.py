"""The settings of one training: steps, batch, rate, optimiser, averages and checkpoints."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.ranges import Count, Fraction, FractionBelowOne, NotNegative, RangedFields, Whole
from pipeline.recipes.field_metadata import ONLY_SPEED
from pipeline.validation import SettingError


@dataclass
class Loop(RangedFields):
    """Steps, batch, optimizer (AdamW) and checkpoints of a training; steps are optimizer steps, the batch is global."""

    steps: Whole
    lr: dict[str, NotNegative]  # peak learning rate by player: tokenizer, critic, network
    batch: Count = 64  # images per step, over all processes
    accumulate: Count = field(default=1, metadata=ONLY_SPEED)  # micro-batches per step; `check` names what it changes
    warmup: Whole = 0  # steps from zero to the full rate
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # of the learning rate, after the warm-up
    final: Fraction = 0.0  # fraction of the peak rate at which cosine and linear end
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.95)  # of AdamW
    weight_decay: NotNegative | dict[str, NotNegative] = 0.0  # of matrices and kernels, for all players or by player
    clip: NotNegative = 1.0  # largest norm of a player's gradient; 0: no clipping
    ema: FractionBelowOne = 0.999  # decay of the running average of the weights, which is what is kept
    skip: Whole = 10  # consecutive steps with non-finite gradients that are skipped before the run stops
    save_every: Whole = field(default=1000, metadata=ONLY_SPEED)  # steps between checkpoints; 0: the last step alone
    keep: Count = field(default=2, metadata=ONLY_SPEED)  # checkpoints, the newest
    log_every: Count = field(default=50, metadata=ONLY_SPEED)  # steps between lines of metrics.jsonl
    compile: bool = field(default=False, metadata=ONLY_SPEED)  # the players, by torch.compile

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch % self.accumulate:
            raise SettingError(
                "accumulate", f" is {self.accumulate}, which does not divide the batch of {self.batch}; give a divisor"
            )

    def decay_of(self, player: str) -> float:
        """The weight decay of a player, 0 where a mapping does not name it."""
        return self.weight_decay.get(player, 0.0) if isinstance(self.weight_decay, dict) else self.weight_decay
