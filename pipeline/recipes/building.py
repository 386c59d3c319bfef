"""Building what a recipe names from what earlier stages determine."""

import math
from typing import Any

import torch
from torch import nn

from pipeline.code import LatentSpec
from pipeline.components import Arguments, build, check
from pipeline.networks.base import Network
from pipeline.objectives.base import Objective
from pipeline.recipes.schema import Recipe
from pipeline.tokenizers.base import Tokenizer

DERIVED = {  # what a recipe may not state, by slot
    "datasets": ("split",),
    "tokenizers": ("image_size",),
    "networks": ("grid", "dim", "vocab", "codebooks", "num_classes", "outputs", "class_token"),
    "objectives": (),
    "losses": ("backbone", "class_teacher", "tap", "dim", "grid"),
    "critics": ("widths", "source"),
    "perturbations": (),
}


def find_tokenizer(recipe: Recipe) -> tuple[type[Tokenizer], Arguments]:
    """The class of the recipe's tokenizer and its arguments, the image size included."""
    cls, arguments = check("tokenizers", recipe.tokenizer.model, DERIVED["tokenizers"], "tokenizer.model")
    return cls, arguments | {"image_size": recipe.data.size}


def build_tokenizer(recipe: Recipe) -> Tokenizer:
    """The tokenizer before its training; its weights are drawn by torch's global generator, see `seeded`."""
    return build("tokenizers", recipe.tokenizer.model, image_size=recipe.data.size)


def on_meta(recipe: Recipe) -> Tokenizer:
    """The tokenizer without weights, whose parameters and shapes are those of the real one."""
    with torch.device("meta"):
        return build_tokenizer(recipe).to("meta")


def build_network(recipe: Recipe, spec: LatentSpec, num_classes: int, objective: Objective) -> Network:
    return build("networks", recipe.generator.network, **network_shape(spec, num_classes, objective))


def network_shape(spec: LatentSpec, num_classes: int, objective: Objective) -> dict[str, Any]:
    """The arguments of a network that follow from the codes, the classes and the objective."""
    derived = {"grid": list(spec.grid), "dim": spec.dim, "vocab": spec.vocab, "codebooks": spec.codebooks}
    return derived | {"num_classes": num_classes, "outputs": objective.outputs, "class_token": objective.class_token}


@torch.no_grad()
def hidden_layout(network: Network, block: int) -> tuple[list[int], int]:
    """Grid and width of the hidden states after a block; ValueError where there is no such block. Computes nothing."""
    config = network.config
    with torch.device("meta"):
        shadow = type(network)(**Arguments.from_config(network)).to("meta")
    z, time = (torch.zeros(shape, device="meta") for shape in ((1, *shadow.state_shape), (1,)))
    (states,) = shadow.tapped(z, time, None, (block,))
    patch = round((math.prod(config.grid) / states.shape[1]) ** (1 / len(config.grid)))
    return [side // patch for side in config.grid], states.shape[2]


def classes_told(recipe: Recipe, there: int) -> int:
    """All classes of the images, `there` of them, or 0 where the generator is told none; ValueError of none."""
    if recipe.generator.condition == "none":
        return 0
    if not there:
        raise ValueError("the images have no classes; set generator.condition=none and sample.guidance=1")
    return there


def seeded(seed: int) -> None:
    """Seed torch's global generator: for the initial weights, the one draw that modules make themselves."""
    torch.manual_seed(seed)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
