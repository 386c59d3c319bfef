"""The section `sample` of a recipe: how the finished line is sampled."""

from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.ranges import Count, Evaluations, ImageCount, RangedFields
from pipeline.recipes.field_metadata import ONLY_SPEED
from pipeline.samplers.guidance import Guidance

HELD_OUT = "held_out"  # prompts: captions of held-out images, evenly through them


@dataclass
class Weak(RangedFields):
    """The network that AutoGuidance leads away from (Karras et al., arXiv:2406.02507): another one, or an earlier self.

    A folder is a run's generator/, a published pipeline or a network of its own, trained on the same tokenizer's codes.
    """

    folder: str | None = None
    step: Count | None = None  # of this recipe's training, one of generator.milestones

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.folder is None) == (self.step is None):
            raise ValueError("give either folder=FOLDER of another network, or step=N of this training")

    def __str__(self) -> str:
        return self.folder or f"step {self.step} of the same training"


@dataclass
class EarlierDecoder(RangedFields):
    """A decoder of this recipe's post-training as it was before the end."""

    step: Count  # one of posttrain.milestones


@dataclass
class Sampling(RangedFields):
    """What is asked of the finished line. `sampler` holds the objective's own settings (solver, ...)."""

    images: ImageCount = 64
    steps: Evaluations | None = None  # network evaluations; null: 50 for continuous codes, else as the objective says
    guidance: Guidance = Guidance()
    weak: Weak | None = None  # what guidance leads away from, in place of the null label
    decoder: EarlierDecoder | None = None  # what codes are decoded by, in place of the one that post-training kept
    labels: Literal["balanced", "random"] = "balanced"
    prompts: str = HELD_OUT  # what a line that reads text is asked for: captions of held-out images, or a file of texts
    negative_prompt: str | None = None  # what guidance leads away from, in place of no caption
    sampler: dict[str, Any] = field(default_factory=dict)
    batch: Count = field(default=64, metadata=ONLY_SPEED)
