"""The section `posttrain` of a recipe: training of the decoder against the generator."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.ranges import Count, FractionAboveZero, FractionBelowOne, RangedFields, Whole
from pipeline.recipes.tokenizer_training import Phase
from pipeline.validation import Range


@dataclass
class PostTraining(RangedFields):
    """Training of the decoder on pairs of a code that the generator regenerated, and the real image: RobusTok's.

    Qiu et al., arXiv:2509.12474, section 4.3. The generator is sampled with the settings of `sample`.
    """

    phase: Phase  # with train: decoder; its terms are those of the losses, and `adversarial`
    pairs: Annotated[int, Range(2)]  # of random training images, each used more than once where there are fewer
    held_out: Whole  # pairs of other images, whose error is measured, and with `keep: best` chooses and ends training
    preserve: FractionAboveZero = 0.9  # fraction of the code that the generator keeps
    route: Literal["reencode", "tokens"] = "reencode"  # decode and encode regenerated codes, or use them as they are
    view: Literal["stored", "center"] = "stored"  # of an image and its code: the one stored, or the plain center crop
    rehearsal: FractionBelowOne = 0.0  # fraction of a batch with the image's own code
    check_every: Count = 500  # steps between errors of held-out pairs
    keep: Literal["best", "last"] = "best"  # decoder: of the smallest error, or after all steps, whatever the errors
    patience: Count = 5  # errors in a row without a smaller one, after which `keep: best` ends training
    milestones: tuple[Count, ...] = ()  # steps after which the average decoder is saved, for sample.decoder
