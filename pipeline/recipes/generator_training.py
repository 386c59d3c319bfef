"""The section `generator` of a recipe: the network, its objective and its training."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.components import Node
from pipeline.ranges import Count, NotNegative, RangedFields
from pipeline.recipes.field_metadata import slot
from pipeline.recipes.loops import Loop


@dataclass
class GeneratorTraining(RangedFields):
    """The network that generates codes, its objective, and its training."""

    network: Node = field(metadata=slot("networks"))  # slot networks
    objective: Node = field(metadata=slot("objectives"))  # slot objectives
    weights: dict[str, NotNegative]  # loss term -> weight
    loop: Loop
    losses: dict[str, Node] = field(default_factory=dict, metadata=slot("losses"))  # of the hidden states
    start: str | None = None  # folder of a network with the initial weights, or joint: that of joint training
    condition: Literal["class", "none"] = "class"  # what the network is conditioned on
    milestones: tuple[Count, ...] = ()  # steps after which the average weights are saved, for sample.weak

    @property
    def starts_joint(self) -> bool:
        """Whether training starts from the network that was trained with the tokenizer: `start: joint`."""
        return self.start == "joint"
