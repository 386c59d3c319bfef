"""What every metric states of itself, what it is given, and what it returns: a number with its protocol."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from accelerate import Accelerator
from torch import Tensor

from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import build, find, kinds
from pipeline.draws import ImageDraws
from pipeline.features.comparison import Comparison, ImageSet, ImageSets
from pipeline.features.extractors import FeatureExtractor
from pipeline.features.neighbours import on_device
from pipeline.features.networks import FeatureExtractors
from pipeline.features.passes import PerImage, count
from pipeline.images.reading import ImageBatch
from pipeline.nn.image_size import ImageShape
from pipeline.ranges import RangedArguments
from pipeline.recipes.evaluation import Evaluation
from pipeline.tokenizers.base import Tokenizer
from pipeline.validation import suggestion

Encode = Callable[[Tensor, Condition | None], Code]  # images and what is known of them to their codes
HELD_OUT = "held-out images"
NEEDS = {  # what a metric can need; it is measured where all that it needs is there
    "moments": "mean and covariance of features",
    "rows": "rows of features, one per image",
    "labels": "class labels of the real images",
    "classifier": "a judge that was trained on class labels",
    "captions": "prompts of the samples",
    "logits": "features that give class logits (inception)",
    "ids": "codes with ids",
    "continuous": "codes without ids",
    "ends": "rows of ids that end early",
    "attributes": "attributes of the images",
    "posterior": "a bottleneck with a divergence term",
    "prior": "a small generator trained on the codes",
}


@dataclass(frozen=True)
class Quantity:
    """One number that a metric gives. `{}` in key, title and meaning stands for the features, or whatever it is of."""

    key: str  # in metrics.json and card.json
    title: str
    better: str  # higher, lower or neither
    meaning: str  # one sentence for the report
    unit: str = ""
    headline: bool = False  # shown at the head of the page

    def measurement(
        self, value: float, protocol: dict[str, Any], of: str = "", **more: Any
    ) -> "tuple[str, Measurement]":
        """The key and the measurement of `value`; `of` replaces `{}`, `more` are further fields of the measurement."""
        key, title, meaning = (text.replace("{}", of) for text in (self.key, self.title, self.meaning))
        fields = {"title": title, "unit": self.unit, "headline": self.headline} | more
        return key, Measurement(value=value, better=self.better, meaning=meaning, protocol=protocol, **fields)


@dataclass
class Measurement:
    """A measured number. `held_out` is the same number for as many real images that no training saw: the floor.

    `before` is that of the weights that training began with, where these were trained already.
    """

    title: str
    value: float
    better: str  # higher, lower or neither
    meaning: str
    protocol: dict[str, Any]
    unit: str = ""
    held_out: float | None = None
    ratio: float | None = None  # value / held_out, where that says something
    before: float | None = None
    details: dict[str, float] = field(default_factory=dict)
    headline: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As metrics.json holds it."""
        return asdict(self)


Measurements = Iterator[tuple[str, Measurement]]  # by key


class Metric(RangedArguments, ABC):
    """A method of measuring. Settings of an evaluation or a card reach the constructors that take them."""

    quantities: ClassVar[tuple[Quantity, ...]]
    needs: ClassVar[frozenset[str]] = frozenset()  # names in NEEDS
    order: ClassVar[int] = 1000  # in reports and cards: smaller numbers stand first
    on_demand: ClassVar[str | None] = None  # setting of `evaluate` without which a report does not have it
    fewest: int = 1  # images of each set that its numbers are of
    of_pairs: ClassVar[bool] = False  # whether it compares all pairs of evaluate.neighbour_images
    of_held_out: ClassVar[bool] = False  # whether it has no numbers at all without held-out images

    def __init__(self) -> None:
        """A metric without settings."""

    @property
    def name(self) -> str:
        """Its kind, as recipes name it."""
        return type(self).__module__.rpartition(".")[2]

    def why_too_few(self, images: Mapping[str, int]) -> str | None:
        """Why it has no numbers of so many `images` of each set, by what messages call the set; None where it has."""
        for title, there in images.items():
            if there < self.fewest and (there or title != HELD_OUT or self.of_held_out):
                needed = f"{self.fewest} {title if self.fewest > 1 else title.removesuffix('s')}"
                return f"it needs {needed} or more, and there {'is' if there == 1 else 'are'} {there}"
        return None

    @classmethod
    def description(cls) -> list[str]:
        """Its numbers and what it needs, as lines of `python run.py describe NAME`."""
        lines = []
        for quantity in cls.quantities:
            key, title, meaning = (t.replace("{}", "NAME") for t in (quantity.key, quantity.title, quantity.meaning))
            better = f"{quantity.better} is better" if quantity.better != "neither" else ""
            lines.append(f"  {key}: {', '.join(filter(None, (title, quantity.unit, better)))}: {meaning}")
        needed = "; ".join(NEEDS[need] for need in sorted(cls.needs))
        return [*lines, *(["", f"It needs: {needed}."] if needed else [])]


@dataclass(frozen=True)
class SampleInputs:
    """What metrics of samples are given."""

    extractors: FeatureExtractors
    moments: Comparison  # of Gaussian | Moments
    rows: Comparison | None  # of Tensor [n, D], of some images; None where no images of the reference are known
    samples: PerImage  # of all samples: a few numbers each, as metrics' `rows` have them
    held_out: PerImage  # the same of real held-out images; empty where there are none
    train: PerImage  # the same of real training images
    near: ImageSets  # of some of each: features, as metrics' `neighbour_rows` have them
    count: int  # of all samples
    protocol: dict[str, Any]  # how samples and numbers were computed
    score: float | None = None  # inception score of all samples
    score_of_real: float | None = None  # of held-out images, where they are as many

    @property
    def images(self) -> dict[str, int]:
        """How many images there are of each set, as `Metric.why_too_few` takes them."""
        references = {"training images": count(self.train)} if self.train else {}
        return {"samples": count(self.samples), HELD_OUT: count(self.held_out)} | references

    @property
    def available(self) -> set[str]:
        """The names in NEEDS that these inputs have."""
        judge = self.extractors.described["judge"]["kind"]
        there = {"moments": True, "rows": self.rows is not None, "labels": "labels" in self.train}
        there |= {"classifier": judge == "classifier", "logits": self.score is not None}
        return {name for name, has in there.items() if has} | {"captions"}.intersection(self.samples)


class SampleMetric(Metric):
    """A metric of samples, in the report and in a sweep; `evaluate.metrics` chooses them."""

    group: ClassVar[str] = "Samples"  # heading in the report

    def rows(self, images: Tensor, extractors: FeatureExtractors) -> PerImage:
        """What it must know of all images [B, C, H, W] in [-1, 1]: a few numbers of each."""
        return {}

    def neighbour_rows(self, images: Tensor, extractors: FeatureExtractors) -> PerImage:
        """Features of images [B, C, H, W] in [-1, 1] beside `extractors.features`, of which some images' are kept."""
        return {}

    @abstractmethod
    def measure(self, inputs: SampleInputs) -> Measurements:
        """Its numbers, by key."""


class FeatureMetric(SampleMetric):
    """A metric that compares rows of features; it is measured on each of the features, for held-out images too.

    It takes time by the square of the images, of which there are evaluate.neighbour_images.
    """

    needs = frozenset({"rows"})
    of_pairs = True
    only: ClassVar[tuple[str, ...]] = ()  # features it is defined on; empty for all

    @abstractmethod
    def compare(self, samples: Tensor, real: Tensor) -> tuple[float, ...]:
        """A value for each of the quantities, from rows [m, D] and [n, D]."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What protocols say of the method."""

    def measure(self, inputs: SampleInputs) -> Measurements:
        for feature in inputs.extractors.features:
            if not self.only or feature.name in self.only:
                yield from self.on_feature(feature, inputs)

    def on_feature(self, feature: FeatureExtractor, inputs: SampleInputs) -> Measurements:
        """The numbers on one of the features; those of the held-out images are their floors."""
        name, rows = feature.name, inputs.rows
        samples, real = (on_device(of[name], inputs.extractors.device) for of in (rows.samples, rows.references))
        values = self.compare(samples, real)
        floors: Sequence[float | None] = [None] * len(values)
        if rows.held_out is not None:
            floors = self.compare(on_device(rows.held_out[name], inputs.extractors.device), real)
        where = self.described() | rows.protocol(feature.describe(), name) | inputs.protocol
        for quantity, value, floor in zip(self.quantities, values, floors):
            yield quantity.measurement(value, where, name, held_out=floor)


@dataclass(frozen=True)
class EncodedImages:
    """A batch of held-out images that went through the tokenizer."""

    images: Tensor  # [B, C, H, W] in [-1, 1]
    code: Code  # modes, at unit scale
    reconstructions: Tensor  # like `images`, rounded to 8 bits
    encode: Callable[[Tensor], Code]  # other images of the same captions
    tokenizer: Tokenizer
    extractors: FeatureExtractors
    draws: ImageDraws  # one generator per image, which metrics use in their order
    places: list[int]  # numbers of the images
    seed: int  # of the recipe
    condition: Condition | None = None  # their labels and captions
    vision: Callable[[Tensor], Tensor] | None = None  # of a card: images to a vision model's features [B, D]


@dataclass(frozen=True)
class LearnedPrior:
    """The result of training a small generator on codes."""

    loss: float  # the smallest of those on new codes
    course: dict[int, float]  # loss on new codes by step
    described: dict[str, Any]


@dataclass(frozen=True)
class TokenizerInputs:
    """What metrics of a tokenizer are given. In a report `train` holds the stored ids alone, and there is no prior."""

    tokenizer: Tokenizer
    image_shape: ImageShape  # channels, height and width
    seed: int
    extractors: FeatureExtractors
    accelerator: Accelerator
    train: ImageSet
    held_out: ImageSet
    encode: Encode  # images [B, C, H, W] to modes, at unit scale
    vision: dict[str, Any] = field(default_factory=dict)  # the vision model's description
    class_names: Sequence[str] = ()
    attribute_names: Sequence[str] = ()
    prior: LearnedPrior | None = None
    read_images: Callable[[], ImageBatch] | None = None  # one batch of held-out images, for times

    @property
    def spec(self) -> LatentSpec:
        return self.tokenizer.spec

    @property
    def images(self) -> dict[str, int]:
        """How many images there are of each set, as `Metric.why_too_few` takes them."""
        return {HELD_OUT: count(self.held_out.rows)}

    @property
    def available(self) -> set[str]:
        """The names in NEEDS that these inputs have."""
        there = {name: name in self.train.rows for name in ("ids", "labels", "attributes")} | {"ends": self.spec.ends}
        there |= {"continuous": not self.spec.vocab, "posterior": "kl" in self.held_out.rows, "prior": bool(self.prior)}
        return {name for name, has in there.items() if has}

    @property
    def of_images(self) -> dict[str, Any]:
        """What protocols say of a number of held-out images."""
        return {"images": f"{count(self.held_out.rows)} held-out images"} | self.held_out.protocol

    @property
    def of_reconstructions(self) -> dict[str, Any]:
        """What protocols say of a number of held-out images and their reconstructions."""
        images = f"{count(self.held_out.rows)} held-out images and their reconstructions"
        return {"images": images, "code": "the mode of the posterior"} | self.held_out.protocol

    @property
    def of_splits(self) -> dict[str, Any]:
        """What protocols say of a number that is fitted to one split and measured on the other."""
        return self.of_images | {"references": f"{count(self.train.rows)} images of the training split"}


class TokenizerMetric(Metric):
    """A metric of a tokenizer alone, on its card; some stand in a run's report, too."""

    group: ClassVar[str]  # heading in the card
    report_group: ClassVar[str | None] = None  # heading in the report, for those that it has
    of_held_out = True

    def rows(self, batch: EncodedImages) -> PerImage:
        """What it must know of each held-out image."""
        return {}

    def moment_rows(self, batch: EncodedImages) -> dict[str, Tensor]:
        """Rows [B, D] of held-out images of which it must know the moments alone."""
        return {}

    @abstractmethod
    def measure(self, inputs: TokenizerInputs) -> Measurements:
        """Its numbers, by key."""

    def curves(self, inputs: TokenizerInputs) -> dict[str, Any]:
        """What a figure of the card shows, as plain numbers by name."""
        return {}

    @classmethod
    def why_left_out(cls, spec: LatentSpec) -> str | None:
        """Why codes of this geometry are not measured; None where they are."""
        return None


def metric_kinds(family: type[Metric]) -> list[str]:
    """The kinds of a family, in the order of the reports."""
    members = [kind for kind in kinds("metrics") if issubclass(find("metrics", kind), family)]
    return sorted(members, key=lambda kind: (find("metrics", kind).order, kind))


def report_kinds() -> list[str]:
    """The metrics that `evaluate.metrics` can name: those of samples, and those of a tokenizer that a report has."""
    of_tokenizer = [k for k in metric_kinds(TokenizerMetric) if find("metrics", k).report_group is not None]
    return [*metric_kinds(SampleMetric), *of_tokenizer]


def check_metrics(names: Sequence[str] | None, known: list[str], where: str) -> None:
    """ValueError where a name is none of the `known`; `where` is the setting that has it."""
    for name in names or ():
        if name not in known:
            raise ValueError(f"{where}: there is no metric {name!r}{suggestion(name, known)}")


def build_metrics(family: type[Metric], names: Sequence[str], **settings: Any) -> list[Any]:
    """The named metrics of a family, in the order of reports, each with the settings that its constructor takes."""
    return [build("metrics", {"kind": name}, **settings) for name in metric_kinds(family) if name in names]


def report_metrics(part: Evaluation, family: type[Metric]) -> list[Any]:
    """The metrics of a family that a recipe's `evaluate` section has measured, in the order of the report."""
    switches = {kind: find("metrics", kind).on_demand for kind in report_kinds()}
    names = [kind for kind, switch in switches.items() if switch is None] if part.metrics is None else part.metrics
    on_demand = [kind for kind, switch in switches.items() if switch is not None and getattr(part, switch)]
    return build_metrics(family, [*names, *on_demand], neighbours=part.neighbours)
