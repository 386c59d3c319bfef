"""Networks that a recipe needs: each by its name and place, and one error for all that are missing."""

from dataclasses import fields

import pytest
from huggingface_hub import constants

import run
from pipeline.checks.recipe import check_recipe
from pipeline.checks.weights import check_weights, describe_weights
from pipeline.frozen.networks import FrozenNetworks, declared_input
from pipeline.recipes.schema import load
from pipeline.recipes.weights import Weights
from pipeline.vision.weights import KNOWN

MAIN = "tokenizer.phases.main"
REQUIRED = ["weights.require=true"]
CRITIC = [
    f"{MAIN}.adversary={{critic: {{kind: frozen_features}}, loss: hinge, start: 0}}",
    f"{MAIN}.weights.adversarial=0.1",
    f"{MAIN}.loop.lr.critic=0.001",
]


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """A machine that holds no published weights."""
    monkeypatch.delenv("TESSERA_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


def test_the_section_has_a_field_for_all_weights_there_are():
    assert {field.name for field in fields(Weights)} == {"require", *KNOWN}
    assert load("digits", ["weights.vgg16=a"]).weights.files == {"vgg16": "a"}
    with pytest.raises(ValueError, match="^weights.vgg61: there is no such setting; did you mean 'vgg16'"):
        load("digits", ["weights.vgg61=a"])


def test_all_that_is_missing_is_one_error_with_places_and_remedies():
    recipe = load("digits", [*CRITIC, "evaluate.features=[inception]", "data.size=16"])
    with pytest.raises(ValueError, match="^evaluate.features: the weights inception are not on this machine; put"):
        check_weights(recipe)
    recipe = load(
        "digits", [*REQUIRED, *CRITIC, "evaluate.features=[inception]", "evaluate.reference=a.npz", "data.size=16"]
    )
    with pytest.raises(ValueError) as error:
        check_weights(recipe)
    said = str(error.value)
    assert said.startswith("weights: what this recipe needs is not all on this machine: (1) ") and "\n" not in said
    perceptual = f"{MAIN}.losses.perceptual, perceptual distance of the report: the weights vgg16 and lpips_vgg are not"
    for part in (
        perceptual,
        f"{MAIN}.adversary.critic: the weights dino_small are not",
        "evaluate.reference: there is no",
    ):
        assert part in said
    for name in ("vgg16", "lpips_vgg", "inception"):
        assert f"or set weights.{name}=FILE" in said
    assert "or set weights.dino_small=FOLDER" in said
    assert said.endswith(
        "; what can be done without is left out by: weights.require=false evaluate.features=[pixels]"
        " evaluate.reference=train"
    )
    check_weights(load("digits"))
    check_weights(load("digits", CRITIC))


def test_nothing_stands_in_for_required_weights(tmp_path):
    """The teacher stays the one that the kind names, and to load it without its weights is an error."""
    for settings, stands_in in ((CRITIC, True), ([*CRITIC, *REQUIRED], False)):
        recipe = load("digits", settings)
        check_recipe(recipe)
        for slot, node in (
            ("critics", recipe.tokenizer.phases["main"].adversary.critic),
            ("losses", {"kind": "perceptual"}),
        ):
            network = declared_input(recipe, slot, node)
            assert ("small classifier" in network.origin()) == stands_in
            if not stands_in:
                assert "missing" in network.origin()
                with pytest.raises(ValueError, match="are not on this machine; "):
                    network.load(FrozenNetworks(recipe, None, tmp_path, None))


def test_a_model_of_the_hub_is_fetched_and_not_missing():
    recipe = load("digits", [*CRITIC, "weights.dino_small=facebook/dino-vits16"])
    assert f"{MAIN}.adversary.critic: dino_small, to be fetched from the hub" in describe_weights(recipe)


def test_check_prints_all_there_is_to_say_and_ends_with_the_error(capsys):
    """Every stage ends alike, and before anything is written."""
    ends = []
    for command in ("check", "all", "train-tokenizer"):
        assert run.main([command, "digits", *REQUIRED, "data.size=16"]) == 2
        printed = capsys.readouterr()
        ends.append(printed.err)
        assert ("parameters" in printed.out) == (command == "check")
    assert len(set(ends)) == 1 and "the weights vgg16 and lpips_vgg are not on this machine" in ends[0]


def test_published_recipes_require_their_networks():
    recipe = load("imagenet256_robustok_rar_b")
    check_recipe(recipe)
    with pytest.raises(ValueError) as error:
        check_weights(recipe)
    for name in ("vgg16", "lpips_vgg", "dinov2_base", "dino_small", "inception"):
        assert f"weights.{name}=" in str(error.value)
    without = str(error.value).rpartition(" is left out by: ")[2].split()
    assert without == ["weights.require=false", "evaluate.features=[pixels]", "evaluate.reference=train"]
    assert recipe.weights.require and recipe.evaluate.images == 50_000 and recipe.evaluate.perturbed
    check_weights(load("imagenet256_robustok_rar_b", without))


def test_on_a_machine_without_images_what_is_missing_is_said_and_no_error(capsys):
    """Where they are here, a training could begin, and the same is an error."""
    needed = ["evaluate.features=[inception, pixels]", "generator.start=nowhere"]
    assert run.main(["check", "image_folder", "data.source.path=none", *needed]) == 0
    rows = [line[12:] for line in capsys.readouterr().out.splitlines() if line.startswith("missing ")]
    assert [row.partition(":")[0] for row in rows] == ["evaluate.features", "generator.start"]
    assert run.main(["check", "image_folder", "data.source.path=none", *needed, *REQUIRED]) == 2
    assert "generator.start: there is no folder nowhere" in capsys.readouterr().err
    assert run.main(["check", "digits", *needed]) == 2
    printed = capsys.readouterr()
    assert "(2) generator.start: there is no folder nowhere on this machine" in printed.err
    assert (
        printed.err.strip().endswith(" is left out by: evaluate.features=[pixels]") and "\nmissing " not in printed.out
    )
