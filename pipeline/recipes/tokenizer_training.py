"""The section `tokenizer` of a recipe: the tokenizer, and the phases of its training."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.components import Node
from pipeline.ranges import Count, Fraction, NotNegative, Positive, RangedFields
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.equivariance import Equivariance
from pipeline.recipes.field_metadata import ONLY_SPEED, slot
from pipeline.recipes.loops import Loop


@dataclass
class Phase(RangedFields):
    """One training of the tokenizer: which parameters, under which loss terms, for how long."""

    loop: Loop
    weights: dict[str, NotNegative]  # loss term -> weight
    losses: dict[str, Node] = field(default_factory=lambda: {"pixel": {"kind": "pixel"}}, metadata=slot("losses"))
    train: str = "all"  # or encoder, decoder, or another of the tokenizer's parts
    only: tuple[str, ...] = ()  # modules of that part by name, for example [decoder.levels.3]; empty: all
    balance: dict[str, str] = field(default_factory=dict)  # term -> parameter where gradients are compared with pixels'
    balance_largest: Positive = 1e8  # ratio of these gradients at most, for losses that are means per element
    until: dict[str, Count] = field(default_factory=dict)  # term -> step from which its weight is 0
    adversary: Adversary | None = None
    perturbation: Node | None = field(default=None, metadata=slot("perturbations"))  # noise on the decoder's input
    equivariance: Equivariance | None = None
    loss_precision: Literal["stage", "fp32"] = "stage"  # of losses, their frozen networks and the critic
    least_usage: Fraction = field(default=0.5, metadata=ONLY_SPEED)  # of codes in use, below which the log warns

    def weights_at(self, step: int) -> dict[str, float]:
        """The weights of all terms at `step`."""
        ended = {term for term, end in self.until.items() if step >= end}
        return {term: 0.0 if term in ended else weight for term, weight in self.weights.items()}


@dataclass
class TokenizerTraining(RangedFields):
    """The tokenizer, and the phases of its training."""

    model: Node = field(default_factory=dict, metadata=slot("tokenizers"))  # slot tokenizers; {}: that of start
    start: str | None = None  # folder with the first weights; without a model that of generator.start
    phases: dict[str, Phase] = field(default_factory=dict)  # in order; empty: used as it is
