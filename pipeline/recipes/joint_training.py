"""The section `joint` of a recipe: training of tokenizer and generator together."""

from dataclasses import dataclass

from pipeline.ranges import FractionAboveZero, NotNegative, Positive, RangedFields
from pipeline.recipes.tokenizer_training import Phase


@dataclass
class JointTraining(RangedFields):
    """The training of tokenizer and generator together: REPA-E's (Leng et al., arXiv:2504.10483).

    The network, its objective, its losses of hidden states and all their weights are those of `generator`.
    """

    phase: Phase  # the tokenizer's; its loop.lr has an entry for the player `network` too
    alignment: dict[str, NotNegative]  # term of generator.losses -> its weight for the tokenizer
    critic: str | None = None  # folder of a critic with the initial weights; null: the tokenizer's own critic
    momentum: FractionAboveZero = 0.1  # of the running mean and variance that normalise codes
    epsilon: Positive = 1e-4  # added to that variance
