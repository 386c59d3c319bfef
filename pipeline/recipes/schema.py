"""The typed schema of a recipe, and loading one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from omegaconf import OmegaConf

from pipeline.components import Node, structure
from pipeline.recipes.files import locate, merge, parse, read
from pipeline.samplers.guidance import Guidance

ONLY_SPEED = {"only_speed": True}  # a setting that changes how fast a result comes, not what it is


@dataclass
class Data:
    """Which images, and how they are made ready: RGB [3, size, size] in [-1, 1]."""

    source: Node  # slot datasets
    size: int
    crop: Literal["center", "random"] = "center"
    resize: Literal["bicubic", "lanczos", "bilinear", "box", "nearest"] = "bicubic"
    flip: bool = False  # mirror half of the training images
    tolerate: int = 0  # broken files that may be left out before the run stops
    workers: int = field(default=0, metadata=ONLY_SPEED)


@dataclass
class Loop:
    """How long and how fast a training runs; counted in optimiser steps, the batch is global."""

    steps: int
    lr: dict[str, float]  # one entry a player
    batch: int = 64
    accumulate: int = field(default=1, metadata=ONLY_SPEED)
    warmup: int = 0  # steps from zero to the full rate
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    final: float = 0.0  # share of the rate that cosine and linear end at
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float | dict[str, float] = 0.0  # of matrices and kernels, also by player; norms and biases have none
    clip: float = 1.0  # largest norm of a player's gradient; 0 leaves it
    ema: float = 0.999
    skip: int = 10  # consecutive non-finite steps that are left out before the run stops
    save_every: int = field(default=1000, metadata=ONLY_SPEED)
    keep: int = field(default=2, metadata=ONLY_SPEED)  # checkpoints
    log_every: int = field(default=50, metadata=ONLY_SPEED)
    compile: bool = field(default=False, metadata=ONLY_SPEED)

    def decay_of(self, player: str) -> float:
        """The weight decay of a player, 0 where a mapping does not name it."""
        return self.weight_decay.get(player, 0.0) if isinstance(self.weight_decay, dict) else self.weight_decay


@dataclass
class Augmentation:
    """Changes of what a critic sees, real and rebuilt: DiffAugment (Zhao et al., arXiv:2006.10738)."""

    share: float = 1.0  # of the images, for each of the three on its own
    colour: bool = True  # brightness, saturation and contrast
    translation: float = 0.125  # of the sides at most; 0 leaves images where they are
    cutout: float = 0.5  # of the sides; 0 cuts nothing out


@dataclass
class Adversary:
    """The critic's part in a phase."""

    critic: Node  # slot critics
    loss: Literal["hinge", "nonsaturating", "least_squares"] = "hinge"
    start: int = 0  # step at which critic and term join
    warmup: int = 0  # steps from there on over which the term's weight grows to the full one
    adaptive: bool = True  # weight balanced by the gradients at the decoder's last layer
    ahead: int = 0  # steps by which the critic begins to learn before `start`
    augmentation: Augmentation | None = None
    lecam: float = 0.0  # weight of LeCam's regularisation, by running means of the logits
    lecam_decay: float = 0.999  # of these means
    feature_matching: bool = False  # also the term feature_matching, of what the critic's layers make

    def learns(self, step: int) -> bool:
        """Whether the critic is trained at `step`."""
        return step >= self.start - self.ahead

    def share(self, step: int) -> float:
        """Of the term's weight at `step`: 0 before `start`, from then on above it."""
        if step < self.start:
            return 0.0
        return min(1.0, (step - self.start + 1) / self.warmup) if self.warmup else 1.0


@dataclass
class Equivariance:
    """How often, and how, what the decoder is shown shrinks and turns, and the image that it is to make with it.

    EQ-VAE (Kouzelis et al., arXiv:2502.09509) and VFM-VAE (arXiv:2510.18457); the shares are those of both.
    """

    codes: float = 0.5  # share of the steps at which the code is transformed
    images: float = 0.25  # share of the other steps at which the image is, before it is encoded
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)  # of the sides; one is drawn for a step
    turns: tuple[int, ...] = (0, 1, 2, 3)  # quarters; one is drawn for a step


@dataclass
class Phase:
    """One training of the tokenizer: what moves, under which terms, for how long."""

    loop: Loop
    weights: dict[str, float]  # loss term -> weight
    losses: dict[str, Node] = field(default_factory=lambda: {"pixel": {"kind": "pixel"}})  # slot losses
    train: str = "all"  # or "encoder", "decoder", or another part that the tokenizer has
    only: tuple[str, ...] = ()  # modules of that part by name, decoder.levels.3 for one; empty for all of it
    balance: dict[str, str] = field(default_factory=dict)  # term -> parameter at which its weight is adapted
    adversary: Adversary | None = None
    perturbation: Node | None = None  # slot perturbations: what the decoder is shown instead of the code
    equivariance: Equivariance | None = None  # that the decoder's images shrink and turn as their codes do
    least_usage: float = field(default=0.5, metadata=ONLY_SPEED)  # share of the codes below which a warning is logged


@dataclass
class TokenizerTraining:
    """The tokenizer, and the trainings that it goes through."""

    model: Node  # slot tokenizers
    start: str | None = None  # folder of a tokenizer whose weights the first phase goes on from
    phases: dict[str, Phase] = field(default_factory=dict)  # in order; empty for one that is frozen, or used as it is


@dataclass
class JointTraining:
    """The training of tokenizer and generator together: REPA-E's (Leng et al., arXiv:2504.10483).

    The network, its objective, its losses of hidden states and all their weights are those of `generator`.
    """

    phase: Phase  # the tokenizer's part; its loop has a rate for the player `network` too
    alignment: dict[str, float]  # term of generator.losses -> its weight for the tokenizer
    critic: str | None = None  # folder of a critic whose weights training goes on from; null: the tokenizer's own
    momentum: float = 0.1  # of the running mean and variance that bring codes to unit scale
    epsilon: float = 1e-4  # added to that variance
    average: bool = True  # keep the average of the tokenizer's weights, and not the last ones as they are


@dataclass
class Latents:
    """What encode_dataset stores."""

    posterior: Literal["sample", "mode", "moments"] = "sample"
    statistics: Literal["measured", "stored"] = "measured"  # mean and std of codes; stored: those a tokenizer came with
    crops: tuple[float, ...] = ()  # 1.1: not the image but five crops, of its central square at 1.1 times the size
    flip: bool = False  # of every view a second code, of its mirror
    class_token: str | None = None  # a vision model, or classifier, whose class feature is stored as code.class_token
    features: bool = False  # beside every code what the teachers of generator.losses see, so that they run once
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    batch: int = field(default=64, metadata=ONLY_SPEED)
    shard: int = field(default=8192, metadata=ONLY_SPEED)  # images a file

    @property
    def views(self) -> int:
        """Codes that are stored of an image."""
        return (5 * len(self.crops) or 1) * (2 if self.flip else 1)


@dataclass
class GeneratorTraining:
    """The network that learns the codes, what it is trained under, and for how long."""

    network: Node  # slot networks
    objective: Node  # slot objectives
    weights: dict[str, float]  # loss term -> weight
    loop: Loop
    losses: dict[str, Node] = field(default_factory=dict)  # slot losses, those that compare hidden states of a block
    start: str | None = None  # folder of a network whose weights training goes on from; with loop.steps=0 as it is
    condition: Literal["class", "none"] = "class"
    milestones: tuple[int, ...] = ()  # steps after which the average weights are kept besides, for sample.weak

    @property
    def starts_joint(self) -> bool:
        """Whether training goes on from the network that was trained with the tokenizer: `start: joint`."""
        return self.start == "joint"


@dataclass
class PostTraining:
    """The decoder's training on pairs (what the generator made of a real image's code, that image): RobusTok's.

    Qiu et al., arXiv:2509.12474, section 4.3. The generator is sampled as `sample` says.
    """

    phase: Phase  # train: decoder; its terms are the losses' and `adversarial`, for nothing before the decoder moves
    pairs: int  # of training images drawn by the seed, which come again where there are fewer of them
    held_out: int  # of these pairs, of images of their own; by their error training stops and the best weights are kept
    preserve: float = 0.9  # share of the code that the generator is given
    route: Literal["reencode", "tokens"] = "reencode"  # what it made goes by way of 8-bit pixels, or straight
    rehearsal: float = 0.0  # share of a batch that has its image's own code, so that reconstruction is not forgotten
    check_every: int = 500  # steps
    patience: int = 5  # checks without a smaller error, after which training ends


@dataclass
class Weak:
    """The network that AutoGuidance leads away from (Karras et al., arXiv:2406.02507): another one, or an earlier self.

    A folder is a run's generator/, a published pipeline or a network of its own, trained on the same tokenizer's codes.
    """

    folder: str | None = None
    step: int | None = None  # of this recipe's training, one of generator.milestones

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.step is None):
            raise ValueError("sample.weak needs either folder=FOLDER of another network or step=N of this training")

    def __str__(self) -> str:
        return self.folder or f"step {self.step} of the same training"


@dataclass
class Sampling:
    """What is asked of the finished line. `sampler` holds the objective's own settings (solver, ...)."""

    images: int = 64
    steps: int | None = None  # network evaluations; null: 50 for continuous codes, what the objective says for ids
    guidance: Guidance = Guidance()
    weak: Weak | None = None  # what guidance leads away from, in place of the null label
    labels: Literal["balanced", "random"] = "balanced"
    sampler: dict[str, Any] = field(default_factory=dict)
    batch: int = field(default=64, metadata=ONLY_SPEED)


@dataclass
class Evaluation:
    """How samples and reconstructions are measured."""

    metrics: tuple[str, ...] | None = None  # by name; null: all that there are, see `python run.py describe`
    features: tuple[str, ...] = ("classifier", "pixels")  # also inception, dinov2, clip, siglip, given their weights
    reference: str = "train"  # what samples are measured against: train, held_out, a folder, or an .npz
    resize: Literal["tensorflow1", "antialias", "clean"] = "tensorflow1"  # of images before Inception
    neighbours: int = 3  # of precision and recall
    images: int = 2000  # at most so many references and reconstructions
    perturbed: bool = False  # also reconstructions of perturbed codes, pFID: 15 decodings of these images


@dataclass
class Publication:
    """What is written beside the pipeline that this library loads."""

    self_contained: bool = False  # also a folder that loads with diffusers alone
    stock: bool = False  # also folders of stock diffusers classes, where the shapes allow
    license: str = "unknown"


@dataclass
class Recipe:
    name: str
    data: Data
    tokenizer: TokenizerTraining
    generator: GeneratorTraining
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    latents: Latents = field(default_factory=Latents)
    joint: JointTraining | None = None  # null passes the tokenizer through
    posttrain: PostTraining | None = None  # null passes the tokenizer through
    sample: Sampling = field(default_factory=Sampling)
    evaluate: Evaluation = field(default_factory=Evaluation)
    publish: Publication = field(default_factory=Publication)
    weights: dict[str, str] = field(default_factory=dict)  # file or folder of a known name: vgg16, ...


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` (a file, or a name in configs/) with `key=value` overrides applied, typed and complete.

    What is included is taken back by null: a whole mapping, which is then empty, or one entry of a mapping by name (of
    `losses`, `weights`, `lr`, `phases`), which is then as if it had never been stated.

    Raises ValueError with one line that says what to change where a name or a type is wrong; the rest of the rules is
    `pipeline.checks.recipe`'s.
    """
    values = read(locate(name))
    for override in overrides:
        values = merge(values, parse(override))
    return structure(Recipe, values)


def settings(recipe: Recipe) -> str:
    """Every value of a recipe as YAML, defaults included."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(recipe)))
