"""The typed schema of a recipe, and loading one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

from omegaconf import OmegaConf

from pipeline.components import Node, structure
from pipeline.ranges import RangedFields, Seed
from pipeline.recipes.arithmetic import StagePrecision
from pipeline.recipes.data import Data
from pipeline.recipes.evaluation import Evaluation
from pipeline.recipes.files import leave_out_known, locate, merge, parse_settings, read, spread
from pipeline.recipes.generator_training import GeneratorTraining
from pipeline.recipes.joint_training import JointTraining
from pipeline.recipes.latents import Latents
from pipeline.recipes.post_training import PostTraining
from pipeline.recipes.publication import Publication
from pipeline.recipes.sampling import Sampling
from pipeline.recipes.started import complete
from pipeline.recipes.text import Text
from pipeline.recipes.tokenizer_training import TokenizerTraining
from pipeline.recipes.weights import Weights
from pipeline.validation import check_folder_name


@dataclass
class Recipe(RangedFields):
    name: str
    data: Data
    text: Text | None = None  # null: captions are not read
    tokenizer: TokenizerTraining = field(default_factory=TokenizerTraining)
    generator: GeneratorTraining | None = None  # null: the line ends with the tokenizer
    seed: Seed = 0
    precision: StagePrecision = field(default_factory=StagePrecision)  # a word alone: of all stages
    latents: Latents = field(default_factory=Latents)
    joint: JointTraining | None = None  # null: no joint training
    posttrain: PostTraining | None = None  # null: no post-training
    sample: Sampling = field(default_factory=Sampling)
    evaluate: Evaluation = field(default_factory=Evaluation)
    publish: Publication = field(default_factory=Publication)
    weights: Weights = field(default_factory=Weights)
    trackers: tuple[str, ...] = ()  # [tensorboard, wandb]: that are told of trainings, by Accelerate's names

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name("name", self.name)
        for phase in self.tokenizer.phases:
            check_folder_name(f"tokenizer.phases.{phase}", phase)

    @property
    def components(self) -> dict[str, Node]:
        """The models of the line, by what they are in it."""
        generator = self.generator
        made_by = {} if generator is None else {"network": generator.network, "objective": generator.objective}
        return {"tokenizer": self.tokenizer.model} | made_by

    @property
    def hidden_losses(self) -> dict[str, Node]:
        """The losses of the generator's hidden states, by name; none without a generator."""
        return {} if self.generator is None else self.generator.losses

    @property
    def conditional(self) -> bool:
        """Whether there is a generator that the classes of images condition."""
        return self.generator is not None and self.generator.reads_classes


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
    recipe = structure(Recipe, leave_out_known(values, FREE_NAMES))
    complete(recipe.tokenizer, recipe.generator)
    return recipe


def settings(recipe: Recipe) -> str:
    """Every value of a recipe as YAML, defaults included."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(recipe)))
