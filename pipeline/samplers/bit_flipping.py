"""How noisy bits are brought to data: the levels, and what is drawn at each from the chances that bits are wrong."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.ranges import Positive, RangedFields

Protocol = Literal["renoise", "posterior"]


@dataclass(frozen=True)
class BitFlipping(RangedFields):
    """The settings of sampling; the defaults are those of Instella-T2I (arXiv:2506.21022)."""

    protocol: Protocol = "renoise"  # of the next state: data noised anew, or the posterior given the state as well
    temperature: Positive = 1.0  # divides the logits that bits are wrong
    power: Positive = 1.0  # of the levels (1 - i / steps)^power: above 1 the steps are shorter near the data

    def levels(self, steps: int, start: float = 1.0) -> list[float]:
        """`steps` + 1 levels that fall from `start` to 0."""
        return [start * (1 - i / steps) ** self.power for i in range(steps + 1)]

    def chance(self, data: Tensor, state: Tensor, level: float, next_level: float) -> Tensor:
        """The chance that a bit is 1 at `next_level`, of that in the data and of the state at `level`, 0 or 1."""
        chance = noised(data, next_level)
        if self.protocol == "renoise":
            return chance
        kept = noised(state, level - next_level)  # of a 1 at the next level to lead to this state, as released
        return chance * kept / (chance * kept + (1 - chance) * (1 - kept))


def noised(bits: Tensor, level: float | Tensor) -> Tensor:
    """The chance of a 1 where bits, or chances of a 1, are a fair coin's with probability `level`."""
    return bits * (1 - level) + level / 2


def certain(chance: Tensor) -> Tensor:
    """The likelier value of each bit, int64; 0 where both are as likely."""
    return (chance > 0.5).to(torch.int64)
