"""What can be known before the first step is refused, or said, before it: by every stage, and by `check` alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import run
from pipeline.checks.line import check_line
from pipeline.checks.machine import check_processes
from pipeline.checks.recipe import check_recipe
from pipeline.checks.weights import check_weights
from pipeline.images.facts import SPLITS, split_facts
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.recipes.schema import Recipe, load

SMALL = ["data.size=32", "tokenizer.model.width=32", "generator.network.depth=1", "data.source.held_out=0.25"]


@pytest.fixture
def folder(tmp_path):
    def of(classes: dict[str, int], name: str = "images") -> Path:
        """A folder of so many images of each class."""
        for kind, count in classes.items():
            (tmp_path / name / kind).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = np.full((16, 16, 3), 7 * i % 256, np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / kind / f"{i}.png")
        return tmp_path / name

    return of


def recipe_of(images: Path, *overrides: str) -> Recipe:
    return load("image_folder", [f"data.source.path={images}", *SMALL, *overrides])


def check(recipe: Recipe):
    return check_line(recipe, check_recipe(recipe), {split: split_facts(recipe.data, split) for split in SPLITS})


def test_images_without_classes_are_refused_under_a_conditional_generator(folder):
    images = folder({".": 12})
    with pytest.raises(ValueError, match="^the images have no classes; set generator.condition=none"):
        check(recipe_of(images))
    check(recipe_of(images, "generator.condition=none", "sample.guidance=1"))


def test_a_class_that_no_training_image_has_is_not_sampled():
    recipe = load("image_folder", ["data.source={kind: shapes, images: 2, held_out: 8}", "data.size=32", SMALL[1]])
    with pytest.raises(
        ValueError, match="^data.source: no training image is of the class '.*', which would be sampled"
    ):
        check(recipe)


def test_what_is_held_out_is_there_where_it_is_needed(folder):
    images = folder({"a": 6, "b": 6})
    none = "data.source.held_out=0"
    with pytest.raises(ValueError, match="^evaluate.reference is held_out, and no image is held out; set data.source"):
        check(recipe_of(images, none, "evaluate.reference=held_out"))
    left_out = check(recipe_of(images, none)).left_out
    assert "evaluate leaves out psnr: it needs 1 held-out image or more, and there are 0" in left_out


def test_numbers_that_few_images_do_not_give_are_named_before_the_first_step(folder):
    recipe = recipe_of(folder({"a": 9, "b": 9}), "sample.images=3", "evaluate.neighbours=2")
    names = [line.removeprefix("evaluate leaves out ").partition(":")[0] for line in check(recipe).left_out]
    assert names == ["density_coverage"]
    fewer = check(recipe_of(folder({"a": 9, "b": 9}), "sample.images=1")).left_out
    assert "evaluate leaves out frechet_distance: it needs 2 samples or more, and there is 1" in fewer


def test_every_frozen_network_is_named_with_where_it_comes_from(folder):
    (perceptual, report) = check(recipe_of(folder({"a": 4, "b": 4}))).weights
    assert perceptual.startswith("tokenizer.phases.main.losses.perceptual: a small classifier of these images")
    assert "vgg16 and lpips_vgg are not on this machine" in perceptual and report.endswith(
        "the judge, which is trained"
    )


def test_stock_folders_that_cannot_be_are_refused_and_those_of_one_part_named(folder):
    images = folder({"a": 4, "b": 4})
    neither = "^publish.stock: DiTTransformer2DModel has no position=.*; AutoencoderKL has a Gaussian.*; set publish"
    with pytest.raises(ValueError, match=neither):
        check(recipe_of(images, "publish.stock=true", "tokenizer.model.patch_size=2"))
    plain = ["publish.stock=true", *(f"generator.network.{one}" for one in ("norm=layer", "feed_forward=gelu"))]
    plain += ["generator.network.position=fixed", "generator.network.query_key_norm=false"]
    left_out = [line for line in check(recipe_of(images, *plain, "tokenizer.model.patch_size=2")).left_out]
    assert any(line.startswith("publish.stock leaves out one part: AutoencoderKL") for line in left_out)


def test_weights_that_a_later_stage_starts_from_are_looked_at_first(folder, tmp_path):
    images, start = folder({"a": 4, "b": 4}), f"generator.start={tmp_path / 'network'}"
    check(recipe_of(images, start))
    with pytest.raises(ValueError, match="^generator.start: there is no folder .*network on this machine; train it or"):
        check_weights(recipe_of(images, start))
    (tmp_path / "network").mkdir()
    with pytest.raises(ValueError, match="^generator.start: .* holds no network"):
        check(recipe_of(images, start))
    network = check(recipe_of(images)).network
    other = DiffusionTransformer(**dict(network.config) | {"width": network.config.width // 2})
    other.save_pretrained(tmp_path / "network")
    with pytest.raises(ValueError, match="^generator.start: the network in .* has width"):
        check(recipe_of(images, start))
    DiffusionTransformer(**network.config).save_pretrained(tmp_path / "network")
    check(recipe_of(images, start))
    guided = ["sample.guidance=2", f"sample.weak={{folder: {tmp_path / 'network'}}}"]
    check(recipe_of(images, *guided))
    with pytest.raises(ValueError, match="^sample.weak.folder: .* has num_classes=2, the recipe's network 3$"):
        check(recipe_of(folder({"a": 4, "b": 4, "c": 4}, "three"), *guided))


def test_what_an_earlier_stage_will_have_is_known():
    stored = "^latents.statistics is stored, and the tokenizer comes with no mean and std of its codes"
    with pytest.raises(ValueError, match=stored):
        check_recipe(load("digits", ["latents.statistics=stored"]))
    width = (
        "^latents.class_token: the classifier has 64 values; set generator.objective.class_token to that, not to 32$"
    )
    with pytest.raises(ValueError, match=width):
        check_recipe(load("digits_reg", ["generator.objective.class_token=32"]))


def test_guidance_fits_the_codes():
    with pytest.raises(ValueError, match="^sample.guidance.channels is 9, and codes have 8; give at most 8$"):
        check_recipe(load("digits", ["sample.guidance.channels=9"]))
    for setting in ("channels", "rescale"):
        with pytest.raises(ValueError, match=f"^sample.guidance.{setting} is for continuous codes"):
            check_recipe(load("digits_vq_ar", [f"sample.guidance.{setting}=1"]))


def test_processes_divide_every_batch():
    recipe = load("digits", ["generator.loop.accumulate=2"])
    check_processes(recipe, 4)
    with pytest.raises(
        ValueError, match="^generator.loop.batch is 64, which does not divide into 5 processes x 2 micro"
    ):
        check_processes(load("digits", ["tokenizer.phases.main.loop.batch=20", "generator.loop.accumulate=2"]), 5)


def test_images_too_small_for_the_judge_are_refused():
    with pytest.raises(ValueError, match="the classifier needs images of 8 pixels per side or more, not 4"):
        check_recipe(load("digits", ["data.size=4", "generator.network.patch_size=1"]))


def test_check_and_every_stage_end_alike(folder, tmp_path, monkeypatch, capsys):
    """With 2 and one line where images are here and wrong, before anything is written; with 0 where they are not."""
    monkeypatch.chdir(tmp_path)
    images = folder({".": 12})
    said = []
    for command in ("check", "all", "train-tokenizer"):
        assert run.main([command, "image_folder", f"data.source.path={images}", *SMALL]) == 2
        said.append(capsys.readouterr().err)
    assert (
        len(set(said)) == 1 and said[0].startswith("tessera: the images have no classes") and said[0].count("\n") == 1
    )
    assert not (tmp_path / "runs").exists()
    assert run.main(["check", "image_folder", f"data.source.path={tmp_path / 'nowhere'}"]) == 0
    assert "not on this machine (data.source.path: there is no folder" in capsys.readouterr().out


def test_the_meta_network_of_a_check_has_the_classes_of_the_images(folder):
    network = check(recipe_of(folder({"a": 4, "b": 4}))).network
    assert network.config.num_classes == 2 and next(network.parameters()).device == torch.device("meta")
