"""Whether the folders of stock diffusers classes that a recipe asks for can be made of its models."""

from pipeline.components import check
from pipeline.networks.base import Network
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.schema import Recipe
from pipeline.tokenizers.base import Tokenizer
from pipeline.validation import SettingError


def check_publication(recipe: Recipe, tokenizer: Tokenizer | None, network: Network | None) -> list[str]:
    """Why a model has no stock class, for each that has none; ValueError where a recipe asks for them and none has.

    `tokenizer` is None where it is frozen, and not built: it is made of a stock class then.
    """
    check_text_encoder(recipe)
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


def check_text_encoder(recipe: Recipe) -> None:
    """ValueError where the text encoder cannot be published, or left out, as publish.text_encoder says."""
    chosen = recipe.publish.text_encoder
    if chosen is True:
        return
    if recipe.text is None:
        raise SettingError("publish.text_encoder", f" is {chosen}, and this line reads no text; leave it out")
    kind = recipe.text.encoder["kind"]
    cls, arguments = check("text_encoders", recipe.text.encoder, DERIVED["text_encoders"], "text.encoder")
    if not cls.given_weights:
        raise SettingError(
            "publish.text_encoder",
            f" is {chosen}, but a {kind} is trained in this run, and nobody else has it; set publish.text_encoder=true",
        )
    if isinstance(chosen, str) and not cls.named_models(arguments):
        raise SettingError("publish.text_encoder", f"={chosen}: a {kind} is not named by a folder; give true or false")
