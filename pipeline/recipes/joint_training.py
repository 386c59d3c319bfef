"""The section `joint` of a recipe: training of tokenizer and generator together."""

from dataclasses import dataclass

from pipeline.ranges import Count, FractionAboveZero, NotNegative, Positive, RangedFields
from pipeline.recipes.tokenizer_training import Phase


@dataclass
class SoftCodes(RangedFields):
    """What the generator reads of ids in joint training: mixtures of codes, which end as ids."""

    first: NotNegative = 1.0  # temperature of the first step, in mean squared distances to the nearest code; 0: ids
    last: Positive = 0.05  # temperature of step `steps`, reached geometrically
    steps: Count = 1000  # after which it reads ids

    def temperature(self, step: int) -> float:
        """Of a step, the first is 0; 0 where the generator reads ids."""
        if not self.first or step >= self.steps:
            return 0.0
        return self.first * (self.last / self.first) ** (step / max(1, self.steps - 1))


@dataclass
class JointTraining(RangedFields):
    """The training of tokenizer and generator together.

    Of continuous codes REPA-E's (Leng et al., arXiv:2504.10483); of ids, with `soft`, the one of soft codes. The
    network, its objective, its losses of hidden states and all their weights are those of `generator`.
    """

    phase: Phase  # the tokenizer's; its loop.lr has an entry for the player `network` too
    alignment: dict[str, NotNegative]  # term of generator.losses, with soft of its objective -> the tokenizer's weight
    soft: SoftCodes | None = None  # the generator reads soft codes, annealed to ids; null: codes are continuous
    critic: str | None = None  # folder of a critic with the initial weights; null: the tokenizer's own critic
    momentum: FractionAboveZero = 0.1  # of the running mean and variance that normalise codes
    epsilon: Positive = 1e-4  # added to that variance
