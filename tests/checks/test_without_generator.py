"""A line that ends with the tokenizer asks for nothing that a generator makes."""

import pytest

from pipeline.checks.line import check_line
from pipeline.checks.recipe import check_recipe
from pipeline.recipes.schema import load


def test_a_line_that_ends_with_the_tokenizer_has_no_network():
    recipe = load("digits", ["generator=null"])
    checked = check_recipe(recipe)
    line = check_line(recipe, checked, {})
    assert checked.generator is None and line.network is None and line.tokenizer is not None
    assert list(recipe.components) == ["tokenizer"] and not recipe.hidden_losses and not recipe.conditional


@pytest.mark.parametrize(
    ("recipe", "settings", "told"),
    [
        ("digits_robust_flow", [], "^posttrain needs a generator, and generator is null; set posttrain=null"),
        ("digits_repae", [], "^joint needs a generator"),
        ("digits", ["sample.weak={step: 5}"], "^sample.weak needs a generator"),
        ("digits", ["sample.decoder={step: 5}"], "^sample.decoder needs a generator"),
        ("digits", ["latents.class_token=classifier"], "^latents.class_token needs a generator"),
        ("digits", ["latents.features=true"], "^latents.features is true, and there is no generator"),
        ("digits", ["evaluate.metrics=[psnr,inception_score]"], "^evaluate.metrics: inception_score measures samples"),
        ("digits", ["publish.self_contained=true"], "^publish.self_contained is of pipelines"),
        ("digits", ["evaluate.perturbed=true"], "^evaluate.perturbed adds noise to codes at unit scale"),
    ],
)
def test_what_a_generator_makes_is_refused_without_one(recipe, settings, told):
    with pytest.raises(ValueError, match=told):
        check_recipe(load(recipe, ["generator=null", *settings]))
