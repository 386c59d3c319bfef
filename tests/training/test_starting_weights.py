"""A training goes on from the weights in a folder, of the same make, or is refused in one line."""

import pytest
import torch
from support.tiny_pipeline import make_network, make_recipe, make_tokenizer

from pipeline.checks.recipe import check_recipe
from pipeline.recipes.building import build_tokenizer
from pipeline.training.starting_weights import fingerprints, load_start
from stages import train_tokenizer


@pytest.fixture
def folder(tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_the_weights_are_those_of_the_folder(folder):
    recipe = make_recipe()
    tokenizer = load_start(build_tokenizer(recipe), str(folder), "tokenizer.start")
    for name, value in make_tokenizer().state_dict().items():
        assert torch.equal(tokenizer.state_dict()[name], value), name
    assert tokenizer.training and all(p.requires_grad for p in tokenizer.parameters())


def test_images_of_another_size_are_no_reason_to_refuse(folder):
    recipe = make_recipe(data={"source": {"kind": "digits"}, "size": 32})
    assert load_start(build_tokenizer(recipe), str(folder), "tokenizer.start").spec.grid == (8, 8)


def test_a_recipe_with_a_start_needs_no_phase(folder):
    recipe = make_recipe()
    with pytest.raises(ValueError, match="name the folder of a trained one: tokenizer.start=FOLDER"):
        check_recipe(recipe)
    recipe.tokenizer.start = str(folder)
    check_recipe(recipe)
    before = train_tokenizer.uses(recipe)
    make_tokenizer().save_pretrained(folder, max_shard_size="2KB")
    assert train_tokenizer.uses(recipe) != before, "another folder, another tokenizer"


def test_what_does_not_fit_is_named(folder, tmp_path):
    recipe = make_recipe()
    make_network().save_pretrained(tmp_path / "network")
    for start, words in (("nowhere", "holds no config.json"), (tmp_path / "network", "holds a DiffusionTransformer")):
        with pytest.raises(ValueError, match=words):
            load_start(build_tokenizer(recipe), str(start), "tokenizer.start")
    recipe.tokenizer.model["bottleneck"] = {"kind": "gaussian", "dim": 4}
    with pytest.raises(ValueError, match="made with bottleneck .*'dim': 3.*, the recipe has .*'dim': 4"):
        load_start(build_tokenizer(recipe), str(folder), "tokenizer.start")


def test_every_folder_that_a_recipe_names_counts(folder):
    part = {"start": str(folder), "losses": [{"path": str(folder)}], "size": 3, "nothing": None, "other": "nowhere"}
    found = fingerprints(part)
    assert list(found) == [str(folder)] and fingerprints(str(folder)) == found
