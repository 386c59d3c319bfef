"""The section `generator` of a recipe: the network, its objective and its training."""

from dataclasses import dataclass, field
from typing import Literal

from pipeline.components import Node
from pipeline.networks.base import Part
from pipeline.nn.lora import Adapted
from pipeline.ranges import Count, NotNegative, Positive, RangedFields
from pipeline.recipes.field_metadata import slot
from pipeline.recipes.loops import Loop
from pipeline.validation import SettingError

JOINT = "joint"  # in place of a folder: the network that was trained with the tokenizer


@dataclass
class Start(RangedFields):
    """The network that a training starts from: all that is not named here has to fit, and is taken as it is."""

    folder: str  # of a run, its generator/, a published pipeline, or an imported network; joint: that of joint training
    reinitialise: tuple[Part, ...] = ()  # drawn anew: labels (other classes), codes (another tokenizer), positions
    resample: tuple[Literal["positions"], ...] = ()  # positions: stretched to the recipe's grid, for another resolution
    transplant: str | Node | None = field(
        default=None, metadata=slot("transplants")
    )  # a kind, or a node: rows of codes
    tokenizer: str | None = None  # whose codes it was trained on, for a transplant; null: the one beside the network

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.transplant, str):
            self.transplant = {"kind": self.transplant}
        if self.transplant is not None and "codes" in self.reinitialise:
            raise SettingError("transplant", " makes the rows of codes, and reinitialise names codes; leave one out")
        if self.transplant is not None and self.folder == JOINT:
            raise SettingError("transplant", " is for another codebook, and folder is joint; leave it out")
        if self.tokenizer is not None and self.transplant is None:
            raise SettingError("tokenizer", " is for a transplant; leave it out, or set transplant=weighted")
        if both := set(self.resample) & set(self.reinitialise):
            raise SettingError("resample", f" and reinitialise both name {both.pop()}; leave one of them out")

    @property
    def new_parts(self) -> tuple[Part, ...]:
        """The parts that are not those of the network in the folder, and are trained as new ones."""
        return self.reinitialise if self.transplant is None else (*self.reinitialise, "codes")


@dataclass
class Adapter(RangedFields):
    """Low-rank changes of linear layers, which alone are trained beside what is drawn anew (LoRA, arXiv:2106.09685)."""

    rank: Count = 16
    alpha: Positive = 16.0  # a change counts alpha / rank times
    layers: Adapted = "attention"  # of every block; all: its other linear layers, too


@dataclass
class GeneratorTraining(RangedFields):
    """The network that generates codes, its objective, and its training."""

    loop: Loop
    network: Node = field(default_factory=dict, metadata=slot("networks"))  # slot networks; {}: that of start
    objective: Node = field(default_factory=dict, metadata=slot("objectives"))  # slot objectives; {}: that of start
    weights: dict[str, NotNegative] = field(default_factory=dict)  # loss term -> weight; 1 of an objective of start
    losses: dict[str, Node] = field(default_factory=dict, metadata=slot("losses"))  # of the hidden states
    start: str | Start | None = None  # the first weights: a section, or its folder alone
    adapter: Adapter | None = None  # train low-rank changes of the network that it starts from; null: all of it
    condition: Literal["class", "text", "class_and_text", "none"] = "class"  # what the network is conditioned on
    milestones: tuple[Count, ...] = ()  # steps after which the average weights are saved, for sample.weak

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.start, str):
            self.start = Start(self.start)
        if self.adapter is not None and self.start is None:
            raise SettingError("adapter", " changes a trained network, and start names none; name its folder there")

    @property
    def reads_classes(self) -> bool:
        """Whether the classes of images condition the network."""
        return self.condition in ("class", "class_and_text")

    @property
    def reads_text(self) -> bool:
        """Whether the captions of images condition the network."""
        return self.condition in ("text", "class_and_text")

    @property
    def starts_joint(self) -> bool:
        """Whether training starts from the network that was trained with the tokenizer: `start: joint`."""
        return self.start is not None and self.start.folder == JOINT

    @property
    def transplanted(self) -> bool:
        """Whether the network that training starts from was trained on another codebook."""
        return self.start is not None and self.start.transplant is not None

    @property
    def has_new_parts(self) -> bool:
        """Whether a network that was trained before gets parts that were not: drawn anew, or an adapter."""
        return self.adapter is not None or self.start is not None and bool(self.start.new_parts)
