"""Whether the folders of stock diffusers classes that a recipe asks for can be made of its models."""

from pipeline.networks.base import Network
from pipeline.recipes.schema import Recipe
from pipeline.tokenizers.base import Tokenizer
from pipeline.validation import SettingError


def check_publication(recipe: Recipe, tokenizer: Tokenizer | None, network: Network | None) -> list[str]:
    """Why a model has no stock class, for each that has none; ValueError where a recipe asks for them and none has.

    `tokenizer` is None where it is frozen, and not built: it is made of a stock class then.
    """
    if not recipe.publish.stock:
        return []
    models, refusals = [model for model in (network, tokenizer) if model is not None], []
    for model in models:
        try:
            model.check_stock()
        except ValueError as refusal:
            refusals.append(str(refusal))
    if tokenizer is not None and len(refusals) == len(models):
        raise SettingError("publish.stock", f": {'; '.join(refusals)}; set publish.stock=false")
    return refusals
