"""Whether the folders of stock diffusers classes that a recipe asks for can be made of its models."""

from functools import partial

from pipeline.networks.base import Network
from pipeline.recipes.schema import Recipe
from pipeline.tokenizers.base import Tokenizer
from pipeline.validation import SettingError

SAME = {  # what the stock class cannot do otherwise
    "position": "fixed",
    "norm": "layer",
    "feed_forward": "gelu",
    "feed_forward_ratio": 4.0,
    "query_key_norm": False,
    "time_scale": 1000.0,
    "time_direction": "noise",
    "class_token": 0,
}
CONDITIONS = "a class-conditional diffusion_transformer on a square grid with " + ", ".join(
    f"{name}={value}" for name, value in SAME.items()
)


def check_publication(
    recipe: Recipe, kind: type[Tokenizer], tokenizer: Tokenizer | None, network: Network
) -> list[str]:
    """Why a model has no stock class, for each that has none; ValueError where a recipe asks for them and none has.

    `tokenizer` is None where one of this `kind` is frozen, and not built.
    """
    refusals = []
    if not recipe.publish.stock:
        return refusals
    for check in (partial(check_stock_network, network), partial(check_stock_tokenizer, kind, tokenizer)):
        try:
            check()
        except ValueError as refusal:
            refusals.append(str(refusal))
    if len(refusals) == 2:
        raise SettingError("publish.stock", f": {'; '.join(refusals)}; set publish.stock=false")
    return refusals


def check_stock_network(network: Network) -> None:
    """ValueError with one line unless the stock class can compute this network."""
    config, name = network.config, type(network).__name__
    if name != "DiffusionTransformer":
        raise ValueError(f"{name} has no stock class in diffusers; DiTTransformer2DModel is {CONDITIONS}")
    for setting, value in SAME.items():
        if config[setting] != value:
            raise ValueError(f"DiTTransformer2DModel has no {setting}={config[setting]}; it is {CONDITIONS}")
    if not config.num_classes or len(config.grid) != 2 or config.grid[0] != config.grid[1]:
        raise ValueError(f"DiTTransformer2DModel needs classes and a square grid; it is {CONDITIONS}")


def check_stock_tokenizer(kind: type[Tokenizer], tokenizer: Tokenizer | None) -> None:
    """As `check_stock_network`, of a tokenizer; one of a frozen kind is None, and made of a stock class already."""
    if tokenizer is None:
        raise ValueError(f"a {kind.__name__} is saved as it is")
    tokenizer.check_stock()
