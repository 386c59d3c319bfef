"""A recipe is accepted or rejected whole, before anything runs, in one line that says what to change."""

from pathlib import Path

import pytest

from pipeline.checks.recipe import check_recipe
from pipeline.recipes.files import catalogue, merge, names, read
from pipeline.recipes.schema import load

ROOT = Path(__file__).parents[2]

MISTAKES = {
    "typo at run level": ("sample.step=20", "sample.step: there is no such setting; did you mean 'steps'"),
    "typo at top level": ("generater.loop.steps=2", "generater: there is no such setting; did you mean 'generator'"),
    "typo in a component": ("generator.network.dpeth=2", "no argument 'dpeth'; did you mean 'depth'"),
    "typo in a nested component": ("tokenizer.model.bottleneck.dimm=2", "no argument 'dimm'; did you mean 'dim'"),
    "wrong type": ("generator.loop.batch=lots", "generator.loop.batch: 'lots' is not a whole number"),
    "wrong type in a component": ("generator.network.depth=28.5", "generator.network.depth: 28.5 is not a whole"),
    "unknown kind": ("generator.network.kind=transformer", "there is no kind 'transformer'"),
    "bad choice": ("latents.posterior=mean", "latents.posterior: 'mean' is not one of sample, mode, moments"),
    "bad choice in a component": ("generator.objective.time=logitnormal", "is not one of uniform, logit_normal"),
    "missing value": ("data.size=null", "data.size: empty is not a whole number"),
    "derived value stated": ("generator.network.num_classes=10", "determined by an earlier stage"),
    "derived geometry stated": ("tokenizer.model.image_size=32", "determined by an earlier stage"),
    "key without =": ("generator.loop.steps", "write key=value"),
    "dashes": ("--steps=3", "write key=value"),
    "empty value": ("generator.loop.steps=", "has no value"),
    "fraction for a count": ("generator.loop.steps=1.5e-1", "0.15 is not a whole number"),
    "no for a text": ("precision=no", "precision.tokenizer: 'no' is not one of fp32, tf32, bf16"),
    "off for a choice": ("generator.condition=off", "generator.condition: 'off' is not one of class, text"),
    "list element": ("tokenizer.model.multipliers[0]=2", "give a whole list"),
    "size not divisible by the stride": ("data.size=18", "18"),
    "weight without a term": ("generator.weights.cosin=1", "generator.weights.cosin"),
    "term without a weight": ("generator.objective.cosine=true", "generator.weights.cosine is missing"),
    "rate without a player": ("generator.loop.lr={net: 1e-3}", "generator.loop.lr.net"),
    "no such optimiser": ("generator.loop.optimizer.kind=adamm", "generator.loop.optimizer: there is no kind 'adamm'"),
    "means of a gradient": (
        "generator.loop.optimizer.betas=[1.0,0.9]",
        r"optimizer.betas\[0\] is 1; give a fraction",
    ),
    "optimiser without a player": ("generator.loop.optimizer={net: {kind: adam}}", "generator.loop.optimizer.net"),
    "wrong sampler setting": ("sample.sampler={slover: heun}", "did you mean 'solver'"),
    "no steps": ("sample.steps=0", "sample.steps is 0; give a number from 1"),
    "bad solver": ("sample.sampler.solver=rk4", "sample.sampler.solver: 'rk4' is not one of"),
    "guidance without classes": ("generator.condition=none", "sample.guidance"),
    "text without an encoder": (
        "generator.condition=text",
        "generator.condition is text, and the recipe has no text encoder; add one, for example text.encoder.kind=",
    ),
    "captions' geometry stated": ("generator.network.text_tokens=4", "determined by an earlier stage"),
    "guidance without class drop": ("generator.network.condition_drop=0.0", "condition_drop"),
    "unknown features": ("evaluate.features=[inceptoin]", "no features 'inceptoin'"),
    "post-training": ("posttrain={route: tokens}", "posttrain"),
}


@pytest.mark.parametrize("override, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_planted_mistakes_stop_at_load(override, message):
    with pytest.raises(ValueError, match=message) as error:
        check_recipe(load("digits", [override]))
    assert "\n" not in str(error.value)


def test_a_network_that_reads_no_captions_is_refused():
    encoder = "text.encoder={kind: byte_transformer, tokens: 8, width: 32}"
    with pytest.raises(
        ValueError, match="^generator.condition is text, and a next_scale_transformer reads no captions"
    ):
        check_recipe(load("digits_var", [encoder, "generator.condition=text"]))


def test_includes_that_are_missing_or_go_in_circles(tmp_path):
    (tmp_path / "a.yaml").write_text("include: b\nname: a\n")
    (tmp_path / "b.yaml").write_text("include: [a]\n")
    with pytest.raises(ValueError, match="includes itself by way of a.yaml -> b.yaml -> a.yaml"):
        read(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("include: nowhere\n")
    with pytest.raises(ValueError, match="includes 'nowhere'"):
        read(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("a: [1,\n")
    with pytest.raises(ValueError, match="b.yaml is not YAML"):
        read(tmp_path / "a.yaml")


def test_numbers_in_scientific_notation_are_numbers():
    recipe = load("digits", ["generator.loop.steps=2e3", "generator.loop.lr.network=1e-4", "seed=1e1"])
    assert recipe.generator.loop.steps == 2000 and recipe.generator.loop.lr["network"] == 1e-4 and recipe.seed == 10


def test_another_kind_replaces_the_whole_node():
    below = {"model": {"kind": "a", "width": 3, "deep": {"x": 1}}}
    assert merge(below, {"model": {"kind": "b", "size": 1}}) == {"model": {"kind": "b", "size": 1}}
    assert merge(below, {"model": {"width": 4}})["model"] == {"kind": "a", "width": 4, "deep": {"x": 1}}


STARTED = ("finetune_generator",)  # from folders that hold their models


@pytest.mark.parametrize("name", [name for name in names() if name not in STARTED])
def test_every_recipe_is_right_and_says_how_to_run_it(name):
    check_recipe(load(name))
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    assert text.startswith("#") and f"run.py all {name}" in text
    assert load(name).name == name


def test_the_catalogue_sets_every_name_apart_from_what_it_says():
    rows = [row.split(maxsplit=1) for row in catalogue().splitlines()]
    assert [name for name, _ in rows] == names()
    assert all(row.endswith(".") for _, row in rows), "a recipe's comment begins with a sentence"


@pytest.mark.parametrize(
    "overrides, scale, channels",
    [
        ([], 1.5, 3),
        (["sample.guidance=4"], 4.0, 3),
        (["sample.guidance.channels=null"], 1.5, None),
        (["sample.guidance={scale: 2.5}", "sample.guidance.channels=1"], 2.5, 1),
    ],
)
def test_a_number_is_the_scale_of_the_guidance_and_leaves_the_rest(overrides, scale, channels):
    guidance = load("imagenet256_sit_xl2", overrides).sample.guidance
    assert (guidance.scale, guidance.channels) == (scale, channels)
    with pytest.raises(ValueError, match="guidance.interval is .0.5, 0.2."):
        load("digits", ["sample.guidance.interval=[0.5,0.2]"])
