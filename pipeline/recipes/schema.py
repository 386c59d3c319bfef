"""The typed schema of a recipe, and loading one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf

from pipeline.components import Node, structure
from pipeline.ranges import (
    Count,
    Evaluations,
    Fraction,
    FractionAboveZero,
    FractionBelowOne,
    ImageCount,
    NotNegative,
    Positive,
    RangedFields,
    Seed,
    Whole,
)
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.arithmetic import StagePrecision
from pipeline.recipes.equivariance import Equivariance
from pipeline.recipes.field_metadata import ONLY_SPEED, slot
from pipeline.recipes.files import leave_out_known, locate, merge, parse_settings, read, spread
from pipeline.recipes.loops import Loop
from pipeline.recipes.weights import Weights
from pipeline.samplers.guidance import Guidance
from pipeline.validation import Length, Range, SettingError, check_folder_name

Enlargements = tuple[Annotated[float, Range(1)], ...]
Features = Annotated[tuple[str, ...], Length(1)]
Side = Annotated[int, Range(1, 2**14)]  # of an image, in pixels


@dataclass
class Data(RangedFields):
    """Which images, and how they are prepared: RGB [3, size, size] in [-1, 1]."""

    source: Node = field(metadata=slot("datasets"))  # slot datasets
    size: Side  # pixels per side, after cropping to a square
    crop: Literal["center", "random", "part"] = "center"  # of training images; all others are cropped at the center
    part: tuple[FractionAboveZero, FractionAboveZero] = (
        0.5,
        1.0,
    )  # crop=part: of the shorter side, drawn, then resized
    smallest: Whole = 0  # shorter side below which a training image gives way to the next one; codes are of all
    shorter_side: Side | tuple[Side, Side] | None = (
        None  # of training images before the crop; [256, 320]: drawn; null: size
    )
    resize: Literal["bicubic", "lanczos", "bilinear", "box", "nearest"] = "bicubic"  # filter
    flip: bool = False  # mirror each training image with probability 0.5
    tolerate: Whole = 0  # unreadable files that are skipped before the run stops
    workers: Whole = field(default=0, metadata=ONLY_SPEED)  # processes that read images for each that computes; 0: it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part[0] > self.part[1]:
            raise SettingError("part", f" is {list(self.part)}; give the smaller one first")
        if self.crop == "part" and self.shorter_side is not None:
            raise SettingError("shorter_side", " is of crops of one size; leave it out, or set data.crop=random")
        least, most = self.shorter_sides
        if not self.size <= least <= most:
            raise SettingError(
                "shorter_side", f" is {self.shorter_side}; give one number or two in order, {self.size} (size) or more"
            )

    @property
    def shorter_sides(self) -> tuple[int, int]:
        """The least and the largest shorter side of a training image before its crop."""
        if isinstance(self.shorter_side, tuple):
            return self.shorter_side
        return (self.shorter_side or self.size,) * 2

    @property
    def preparation(self) -> "Data":
        """How images are made ready, without where they lie: a result depends on this, and on what the images are."""
        return replace(self, source={})


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

    model: Node = field(metadata=slot("tokenizers"))  # slot tokenizers
    start: str | None = None  # folder of a tokenizer with the initial weights of the first phase
    phases: dict[str, Phase] = field(default_factory=dict)  # in order; empty: used as it is


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


@dataclass
class Latents(RangedFields):
    """The codes that are stored for the generator's training."""

    posterior: Literal["sample", "mode", "moments"] = "sample"  # moments: mean and std, sampled in training
    statistics: Literal["measured", "stored"] = "measured"  # mean and std of codes; stored: those it comes with
    scale: Positive | None = None  # in place of statistics: codes are multiplied by it, and not shifted
    crops: Enlargements = ()  # [1.1]: in place of the image, five crops of it at 1.1 times the size
    flip: bool = False  # also the code of every mirrored view
    class_token: str | None = None  # a vision model, or classifier, whose class feature is stored with the code
    class_token_norm: Literal["plain", "none"] = (
        "plain"  # mean 0 and std 1 over its channels; none: as the model has it
    )
    features: bool = False  # also the features of the teachers of generator.losses, which then run once
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"  # of stored numbers
    batch: Count = field(default=64, metadata=ONLY_SPEED)
    shard: Count = field(default=8192, metadata=ONLY_SPEED)  # images per file

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and self.statistics == "stored":
            raise SettingError("scale", " is stated, and statistics=stored; leave one of them out")

    @property
    def views(self) -> int:
        """Codes stored per image."""
        return (5 * len(self.crops) or 1) * (2 if self.flip else 1)


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


@dataclass
class PostTraining(RangedFields):
    """Training of the decoder on pairs of a code that the generator regenerated, and the real image: RobusTok's.

    Qiu et al., arXiv:2509.12474, section 4.3. The generator is sampled with the settings of `sample`.
    """

    phase: Phase  # with train: decoder; its terms are those of the losses, and `adversarial`
    pairs: Annotated[int, Range(2)]  # of random training images, each used more than once where there are fewer
    held_out: Whole  # pairs of other images, whose error is measured, and with `keep: best` chooses and ends training
    preserve: FractionAboveZero = 0.9  # fraction of the code that the generator keeps
    route: Literal["reencode", "tokens"] = (
        "reencode"  # decode and encode the regenerated code again, or use it as it is
    )
    view: Literal["stored", "center"] = "stored"  # of an image and its code: the one stored, or the plain center crop
    rehearsal: FractionBelowOne = 0.0  # fraction of a batch with the image's own code
    check_every: Count = 500  # steps between errors of held-out pairs
    keep: Literal["best", "last"] = "best"  # decoder: of the smallest error, or after all steps, whatever the errors
    patience: Count = 5  # errors in a row without a smaller one, after which `keep: best` ends training
    milestones: tuple[Count, ...] = ()  # steps after which the average decoder is saved, for sample.decoder


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
    sampler: dict[str, Any] = field(default_factory=dict)
    batch: Count = field(default=64, metadata=ONLY_SPEED)


@dataclass
class Evaluation(RangedFields):
    """How samples and reconstructions are measured."""

    metrics: tuple[str, ...] | None = None  # by name; null: all that there are, see `python run.py describe`
    features: Features = ("classifier", "pixels")  # also inception, dinov2, clip, siglip, given their weights
    reference: str = "train"  # what samples are measured against: train, held_out, a folder, or an .npz
    resize: Literal["tensorflow1", "antialias", "clean"] = "tensorflow1"  # of images before Inception
    neighbours: Count = 3  # of precision and recall
    images: Count = 2000  # at most so many references and reconstructions
    neighbour_images: Count = 2000  # of these, whose pairs are compared: precision, recall, near copies
    perturbed: bool = False  # also reconstructions of perturbed codes, pFID: 15 decodings of these images


@dataclass
class Publication(RangedFields):
    """What is written beside the pipeline's folder."""

    self_contained: bool = False  # also a folder that loads with diffusers alone, by trust_remote_code
    stock: bool = False  # also folders of stock diffusers classes, where the shapes allow
    license: str = "unknown"


@dataclass
class Recipe(RangedFields):
    name: str
    data: Data
    tokenizer: TokenizerTraining
    generator: GeneratorTraining
    seed: Seed = 0
    precision: StagePrecision = field(default_factory=StagePrecision)  # a word alone: of all stages
    latents: Latents = field(default_factory=Latents)
    joint: JointTraining | None = None  # null: no joint training
    posttrain: PostTraining | None = None  # null: no post-training
    sample: Sampling = field(default_factory=Sampling)
    evaluate: Evaluation = field(default_factory=Evaluation)
    publish: Publication = field(default_factory=Publication)
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name("name", self.name)
        for phase in self.tokenizer.phases:
            check_folder_name(f"tokenizer.phases.{phase}", phase)


FREE_NAMES = (
    "lr",
    "weight_decay",
    "ema",
    "weights",
    "losses",
    "balance",
    "until",
    "alignment",
)  # fields of names a recipe chooses


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` (a file, or a name in configs/) with `key=value` overrides applied, typed and complete.

    `null` removes what an included file sets: a whole mapping, which is then empty, or one entry of `losses`,
    `weights`, `lr` or `phases` by name; one that is not there may be left out where any recipe has such a name.

    Raises ValueError with one line that says what to change where a name or a type is wrong; all other rules are
    checked by `pipeline.checks.recipe`.
    """
    values = read(locate(name), tuple(f.name for f in fields(Recipe)))
    values = merge(values, parse_settings(overrides, spread))
    return structure(Recipe, leave_out_known(values, FREE_NAMES))


def settings(recipe: Recipe) -> str:
    """Every value of a recipe as YAML, defaults included."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(recipe)))
