"""Whether a recipe whose line ends with the tokenizer asks for anything that a generator makes."""

from pipeline.metrics.base import SampleMetric, metric_kinds
from pipeline.recipes.schema import Recipe
from pipeline.validation import SettingError


def check_without_generator(recipe: Recipe) -> None:
    """ValueError for a setting that a generator alone gives a meaning."""
    needing = {
        "joint": recipe.joint,
        "posttrain": recipe.posttrain,
        "sample.weak": recipe.sample.weak,
        "sample.decoder": recipe.sample.decoder,
        "latents.class_token": recipe.latents.class_token,
    }
    for setting, value in needing.items():
        if value is not None:
            raise SettingError(setting, f" needs a generator, and generator is null; set {setting}=null, or add one")
    if recipe.latents.features:
        raise SettingError("latents.features", " is true, and there is no generator with losses; set it to false")
    if recipe.publish.self_contained:
        raise SettingError("publish.self_contained", " is of pipelines, and generator is null; set it to false")
    if recipe.evaluate.perturbed:
        raise SettingError(
            "evaluate.perturbed",
            " adds noise to codes at unit scale, which is measured for a generator; leave it out, or use `card`",
        )
    if of_samples := [name for name in metric_kinds(SampleMetric) if name in (recipe.evaluate.metrics or ())]:
        raise SettingError(
            "evaluate.metrics", f": {of_samples[0]} measures samples, and generator is null; leave it out, or add one"
        )
