"""Building what a recipe names from what earlier stages determine."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args, get_origin

import torch
from torch import Tensor, nn

from pipeline.code import Condition, LatentSpec, TextSpec
from pipeline.components import Arguments, build, check
from pipeline.networks.base import Network
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.conditions import text_arguments, text_spec
from pipeline.nn.image_size import ImageShape, sides_of
from pipeline.nn.module_outputs import outputs_of
from pipeline.objectives.base import Objective
from pipeline.ranges import type_hints
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.schema import Recipe
from pipeline.recipes.started import find_position_grid
from pipeline.tokenizers.base import Tokenizer
from pipeline.validation import SettingError, at, suggestion


def find_tokenizer(recipe: Recipe) -> tuple[type[Tokenizer], Arguments]:
    """The class of the recipe's tokenizer and its arguments, those of the images and captions included."""
    cls, arguments = check("tokenizers", recipe.tokenizer.model, DERIVED["tokenizers"], "tokenizer.model")
    return cls, arguments | image_arguments(cls, recipe) | caption_arguments(cls, recipe)


def build_tokenizer(recipe: Recipe) -> Tokenizer:
    """The tokenizer before its training; its weights are those of torch's generator, see `seed_initial_weights`."""
    cls, _ = check("tokenizers", recipe.tokenizer.model, DERIVED["tokenizers"], "tokenizer.model")
    derived = image_arguments(cls, recipe) | caption_arguments(cls, recipe)
    return build("tokenizers", recipe.tokenizer.model, **derived)


def image_arguments(cls: type[Tokenizer], recipe: Recipe) -> dict[str, Any]:
    """The arguments of a tokenizer that are of its images; SettingError where it takes no images of that shape."""
    given = {"image_size": recipe.data.image_size, "image_channels": recipe.data.image_shape[0]}
    hints = type_hints(cls.__init__)
    if "image_channels" not in hints and given.pop("image_channels") != 3:
        raise SettingError("data.channels", f": {cls.__name__} takes RGB images alone; set data.channels=rgb")
    if not isinstance(given["image_size"], int) and not takes_list(hints["image_size"]):
        raise SettingError("data.size", f": {cls.__name__} takes square images alone; give one number")
    return given


def caption_arguments(cls: type[Tokenizer], recipe: Recipe) -> dict[str, Any]:
    """The arguments of a tokenizer that are of the captions it reads; of no captions where the recipe has none."""
    hints = type_hints(cls.__init__)
    text = text_arguments(None if recipe.text is None else recipe.text.spec)
    return {name: value for name, value in text.items() if name in hints}


def takes_list(hint: Any) -> bool:
    """Whether an argument of this type may be a list."""
    return get_origin(hint) is list or any(takes_list(inner) for inner in get_args(hint))


def build_tokenizer_on_meta(recipe: Recipe) -> Tokenizer:
    """The tokenizer without weights, whose parameters and shapes are those of the real one."""
    with torch.device("meta"):
        return build_tokenizer(recipe).to("meta")


@dataclass(frozen=True)
class TokenizerPlan:
    """A tokenizer without its weights, as far as the checks of a training need it."""

    cls: type[Tokenizer]
    arguments: Arguments  # of its constructor
    spec: LatentSpec  # of its code
    build: Callable[[], Tokenizer]

    @cached_property
    def module(self) -> Tokenizer:
        """The tokenizer, for checks of its modules and parameters; that of a recipe is built on the meta device."""
        return self.build()

    @property
    def can(self) -> Capabilities:
        return self.cls.capabilities(self.arguments)

    @property
    def image_shape(self) -> ImageShape:
        """Channels, height and width of its images."""
        return (self.arguments.get("image_channels", 3), *sides_of(self.arguments.image_size))

    def compared_shape(self, part: str) -> ImageShape:
        """Channels, height and width of the images that a phase compares which trains `part`."""
        return self.can.compared_shape(part, self.image_shape)

    def compares_pictures(self, part: str) -> bool:
        """Whether these have the channels of pictures, as networks of RGB images need, and are no bands of them."""
        return self.compared_shape(part)[0] == self.image_shape[0]


def plan_tokenizer(recipe: Recipe) -> TokenizerPlan:
    """The plan of a recipe's tokenizer; ValueError where its arguments are wrong or do not fit the images."""
    cls, arguments = find_tokenizer(recipe)
    with at("tokenizer.model"):
        spec = cls.geometry(arguments)
    return TokenizerPlan(cls, arguments, spec, lambda: build_tokenizer_on_meta(recipe))


def plan_built_tokenizer(tokenizer: Tokenizer) -> TokenizerPlan:
    """The plan that a tokenizer was built by."""
    return TokenizerPlan(type(tokenizer), Arguments.from_config(tokenizer), tokenizer.spec, lambda: tokenizer)


def build_network(recipe: Recipe, spec: LatentSpec, num_classes: int, objective: Objective) -> Network:
    shape = network_shape(spec, num_classes, objective, find_text_spec(recipe))
    position_grid = find_position_grid(recipe.generator.start, spec)
    return build("networks", recipe.generator.network, **shape, position_grid=position_grid)


def network_shape(
    spec: LatentSpec, num_classes: int, objective: Objective, text: TextSpec | None = None
) -> dict[str, Any]:
    """The arguments of a network that follow from the codes, the classes, the objective and the captions."""
    derived = {"grid": list(spec.grid), "levels": list(spec.levels), "dim": spec.dim}
    derived |= {"segments": [list(grid) for grid in spec.segments]}
    derived |= {"vocab": spec.vocab, "codebooks": spec.codebooks, "ends": spec.ends}
    derived |= {"num_classes": num_classes, "outputs": objective.outputs, "class_token": objective.class_token}
    return derived | text_arguments(text)


def find_text_spec(recipe: Recipe) -> TextSpec | None:
    """The geometry of the captions that condition the generator; None where none do.

    SettingError where the recipe has no text encoder.
    """
    if recipe.generator is None or not recipe.generator.reads_text:
        return None
    if recipe.text is None:
        raise SettingError(
            "generator.condition",
            f" is {recipe.generator.condition}, and the recipe has no text encoder; add one, for example"
            " text.encoder.kind=byte_transformer, or set generator.condition=class",
        )
    return recipe.text.spec


@torch.no_grad()
def hidden_layout(network: Network, block: int) -> tuple[list[int], int]:
    """Grid and width of the hidden states after a block; ValueError where there is no such block. Computes nothing."""
    config = network.config
    with torch.device("meta"):
        shadow = type(network)(**Arguments.from_config(network)).to("meta")
    z, time = (torch.zeros(shape, device="meta") for shape in ((1, *shadow.state_shape), (1,)))
    (states,) = shadow.tap_blocks(z, time, None, (block,))
    patches = states.shape[1] - bool(config.get("class_token"))
    patch = round((math.prod(config.grid) / patches) ** (1 / len(config.grid)))
    return [side // patch for side in config.grid], states.shape[2]


def blank_captions(tokenizer: Tokenizer, device: str) -> Condition | None:
    """The condition of one image whose caption's features are zero, for a tokenizer that reads captions; else None."""
    if not tokenizer.can.captions:
        return None
    text = text_spec(tokenizer.config)
    features = torch.zeros(1, text.tokens, text.layers * text.dim, device=device)
    pooled = torch.zeros(1, text.pooled, device=device) if text.pooled else None
    return Condition(None, features, torch.ones(1, text.tokens, dtype=torch.bool, device=device), pooled)


@torch.no_grad()
def output_layout(tokenizer: Tokenizer, name: str) -> tuple[list[int], int]:
    """Grid and width of what a module makes, of a tokenizer on the meta device; ValueError where it makes no map."""
    modules = [inner for inner, _ in tokenizer.named_modules() if inner]
    if name not in modules:
        raise ValueError(f"at: this tokenizer has no module {name!r}{suggestion(name, modules)}")
    with outputs_of(tokenizer, [name]) as outputs:
        tokenizer(torch.zeros(1, *tokenizer.image_shape, device="meta"), blank_captions(tokenizer, "meta"))
    output = outputs.get(name)
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        raise ValueError(f"at: {name} makes no map and no tokens in a training; name another module")
    if output.ndim == 4:
        return list(output.shape[2:]), output.shape[1]
    tokens = tokenizer.position_tokens(name, output)
    count, (_, height, width) = tokens.shape[1], tokenizer.image_shape
    rows = math.isqrt(count * height // width)
    if not rows or count % rows or rows * width != count // rows * height:
        raise ValueError(f"at: {name} makes {count} tokens, no map of the aspect ratio of images; name another module")
    return [rows, count // rows], tokens.shape[2]


def count_condition_classes(recipe: Recipe, num_classes: int) -> int:
    """How many classes condition the generator: `num_classes`, or 0; ValueError where the images have none."""
    if not recipe.conditional:
        return 0
    if not num_classes:
        raise ValueError("the images have no classes; set generator.condition=none and sample.guidance=1")
    return num_classes


def seed_initial_weights(seed: int) -> None:
    """Seed torch's global generator: for the initial weights, the one draw that modules make themselves."""
    torch.manual_seed(seed)


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def reads_captions(recipe: Recipe, artefact: str) -> bool:
    """Whether the stage that makes this artefact reads captions: by the recipe's tokenizer, or by its generator."""
    if recipe.text is None or artefact == "joint" and recipe.joint is None:
        return False
    halves = halves_with_captions(recipe)
    if artefact == "latents":
        return "encoder" in halves
    return bool(halves) or artefact != "tokenizer" and recipe.generator is not None and recipe.generator.reads_text


def halves_with_captions(recipe: Recipe) -> tuple[str, ...]:
    """Which of `encoder` and `decoder` of the recipe's tokenizer read captions."""
    cls, arguments = find_tokenizer(recipe)
    return cls.capabilities(arguments).captions
