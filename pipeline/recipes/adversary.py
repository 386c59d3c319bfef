"""What a recipe says of a critic: the records of a phase's adversarial term."""

from dataclasses import dataclass, field

from pipeline.components import Node
from pipeline.nn.augmentation import First
from pipeline.nn.critic_logits import LeCamOf, MeansMove
from pipeline.ranges import Count, Fraction, FractionBelowOne, NotNegative, Positive, RangedFields, Whole
from pipeline.recipes.field_metadata import slot


@dataclass
class Augmentation(RangedFields):
    """Augmentation of the critic's input, real and reconstructed: DiffAugment (Zhao et al., arXiv:2006.10738)."""

    probability: Fraction = 1.0  # per image, for each of the three independently
    colour: bool = True  # brightness, saturation and contrast
    translation: Fraction = 0.125  # largest shift, as a fraction of the sides; 0: none
    cutout: Fraction = 0.5  # sides of the blanked square, as a fraction of the image's; 0: none
    first: First = "colour"  # or translation, as RobusTok has it
    shared: bool = True  # real and rebuilt images are changed alike, in both turns; else each by draws of its own
    blur_fade: Whole = 0  # steps from `start` over which a blur of what the critic judges fades; 0: none
    crop: Count | None = None  # side in pixels to which, with probability 1/2, a whole batch is cropped at one place


@dataclass
class Adversary(RangedFields):
    """A critic that is trained with the tokenizer, and the loss term `adversarial` that it gives."""

    critic: Node = field(metadata=slot("critics"))  # slot critics
    loss: str | Node = field(default="hinge", metadata=slot("adversarial"))  # a kind, or a node with its arguments
    start: Whole = 0  # first step at which the term is used and the critic is trained
    warmup: Whole = 0  # steps after `start` over which the term's weight rises linearly
    adaptive: bool = True  # scale the weight by the ratio of gradients at the decoder's last layer, as VQGAN does
    largest: Positive = 1e4  # ratio at most, for losses that are means per element
    epsilon: Positive = 1e-4  # added to the norm that the ratio divides by; RAE has 1e-6
    ahead: Whole = 0  # steps before `start` at which the critic's training begins; 0 to start
    augmentation: Augmentation | None = None
    rebuild: bool = False  # the critic learns from images that the updated tokenizer rebuilds, without perturbation
    eight_bits: bool = False  # and that are rounded to 8 bits, as stored images are; the tokenizer's turn is as it is
    lecam: NotNegative = 0.0  # weight of the LeCam regularisation
    lecam_decay: FractionBelowOne = 0.999  # of its running means of logits
    lecam_means: MeansMove = "after"  # the means move after the penalty is taken, or before, as RobusTok has it
    carried: bool = False  # begin with the critic of the last phase that had one (post-training: the tokenizer's)
    lecam_of: LeCamOf = "logits"  # what the penalty is of: each logit, or their mean over a batch, as TiTok has it
    feature_matching: bool = False  # also the term feature_matching: distance of the critic's hidden features

    @property
    def first(self) -> int:
        """The first step at which the critic is trained."""
        return self.start - self.ahead

    def learns(self, step: int) -> bool:
        """Whether the critic is trained at `step`."""
        return step >= self.first

    def weight_factor(self, step: int) -> float:
        """What the term's weight is multiplied by at `step`: 0 before `start`, above 0 from then on, at most 1."""
        if step < self.start:
            return 0.0
        return min(1.0, (step - self.start + 1) / self.warmup) if self.warmup else 1.0
