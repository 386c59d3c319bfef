"""Teachers of feature maps: which layers they show, how they are brought to a grid, and how a recipe names them."""

import logging
from pathlib import Path

import pytest
import torch
import transformers as t
from accelerate import Accelerator
from huggingface_hub import constants
from support.vision_folders import IMAGE, save_models
from torch import Tensor
from torch.nn import functional as F

from pipeline.frozen.feature_maps import FeatureMaps
from pipeline.frozen.networks import FrozenNetworks
from pipeline.images.reading import Images
from pipeline.losses.relational import Relational
from pipeline.nn.resize import resize_map
from pipeline.recipes.schema import load
from pipeline.recipes.weights import Weights
from pipeline.teachers.base import Tap
from pipeline.teachers.classifier import Classifier
from pipeline.teachers.vision_model import VisionModel

PREFIX = {"clip": 1, "siglip": 0, "dinov3_vit": 5, "vit_mae": 1, "dinov2": 1}  # tokens that are no patches


def images(side: int = 12, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(side)) * 2 - 1


@pytest.fixture
def folders(tmp_path) -> Path:
    save_models(tmp_path)
    t.Dinov2Model(t.Dinov2Config(**IMAGE)).save_pretrained(tmp_path / "dinov2")
    t.DINOv3ViTModel(t.DINOv3ViTConfig(**IMAGE, num_register_tokens=4)).save_pretrained(tmp_path / "dinov3_vit")
    t.ViTMAEModel(t.ViTMAEConfig(**IMAGE)).save_pretrained(tmp_path / "vit_mae")
    return tmp_path


@torch.no_grad()
def test_maps_are_the_patches_of_the_layers_asked_for(folders):
    for kind, prefix in PREFIX.items():
        model = VisionModel.load(folders / kind, kind, size=16, layers=(0, 1, 2, -1))
        seen = model.outputs(model.pixels(images()), hidden_states=True)
        maps = model.maps(images())
        expected = [*seen.hidden_states[:2], *[seen.last_hidden_state] * 2]
        assert model.widths == (16,) * 4 and [m.shape for m in maps] == [(2, 16, 4, 4)] * 4
        for found, tokens in zip(maps, expected, strict=True):
            assert torch.equal(found.flatten(2).mT, tokens[:, prefix:]), kind
        assert torch.equal(maps[3][:, :, 1, 2], model.tokens(images())[:, 6]), "row by row"
        with pytest.raises(ValueError, match=f"there is no layer 3 in a {kind} of 2; they are 0 to 2"):
            VisionModel.load(folders / kind, layers=(3,))


@torch.no_grad()
def test_the_last_norm_can_be_without_scale_and_shift(folders):
    for kind in ("dinov2", "dinov3_vit", "siglip", "vit_mae"):
        whole = VisionModel.load(folders / kind)
        for name, parameter in whole.model.named_parameters():
            if "norm" in name and "layer" + "." not in name and "layers." not in name:
                parameter.normal_()
        whole.model.save_pretrained(folders / "moved")
        found = VisionModel.load(folders / "moved", affine=False).maps(images())[0]
        torch.testing.assert_close(found.mean(dim=1), torch.zeros(2, 3, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.std(dim=1, correction=0), torch.ones(2, 3, 3), atol=1e-2, rtol=0)
        assert not torch.allclose(whole.maps(images())[0], found), kind
    with pytest.raises(ValueError, match="a clip pass through no last norm"):
        VisionModel.load(folders / "clip", affine=False)


def test_maps_are_brought_to_a_grid_by_areas_or_bilinearly():
    maps = torch.randn(2, 3, 4, 4)
    assert resize_map(maps, (4, 4)) is maps
    assert torch.equal(resize_map(maps, (2, 2)), F.avg_pool2d(maps, 2))
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    torch.testing.assert_close(resize_map(ramp, (8, 8))[0, 0, 0, 1:7], torch.arange(0.25, 3, 0.5))
    torch.testing.assert_close(resize_map(torch.ones(1, 1, 7, 5), (3, 9)), torch.ones(1, 1, 3, 9))


def test_a_tap_is_one_frozen_map_of_a_teacher_at_the_places_of_a_grid():
    classifier = Classifier(num_classes=3, width=8, stages=2).train()
    assert classifier.widths == tuple(m.shape[1] for m in classifier.maps(images(16)))
    tap = Tap(classifier, -2).train()
    assert (tap.name, tap.width) == ("classifier", classifier.widths[1])
    assert not any(m.training for m in tap.teacher.modules()) and not any(p.requires_grad for p in tap.parameters())
    found, own = tap(images(16), (8, 8)), classifier.maps(images(16))[1]
    assert found.shape == (2, 64, tap.width) and torch.equal(found[:, 10], own[:, :, 1, 2]) and not found.requires_grad
    assert tap(images(16), (4, 4)).shape == (2, 16, tap.width)
    with pytest.raises(ValueError, match="has maps 0 to 2, or -3 to -1, and no 3"):
        Tap(classifier, 3)


def test_a_loss_names_its_teacher_by_weights_folder_or_hub(folders, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("TESSERA_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    recipe, accelerator = load("digits"), Accelerator(cpu=True)
    networks = FrozenNetworks(recipe, Images(recipe.data, "train"), tmp_path, accelerator)

    def built(**arguments) -> Tap:
        return networks.load(FeatureMaps(recipe, Relational, arguments))

    named = built(teacher=str(folders / "dinov3_vit"), layer=1, teacher_size=16)
    assert (named.name, named.width) == ("dinov3_vit", 16) and named.teacher.layers == [1]
    several = built(teacher=str(folders / "dinov3_vit"), layers=[1, -1], teacher_size=16)
    made = images(16).requires_grad_()
    first, last = several.maps(made)
    assert torch.equal(first, named.maps(made)[0]) and torch.equal(last, several.teacher.maps(made)[1])
    torch.autograd.backward(first.sum() + last.square().sum())
    assert made.grad.abs().sum() > 0 and all(p.grad is None for p in several.parameters())
    plain = built(
        teacher=str(folders / "dinov3_vit"), teacher_size=16, teacher_resize="bilinear", teacher_colours="unchanged"
    )
    seen = plain.teacher.pixels(images(12))
    torch.testing.assert_close(seen, F.interpolate(images(12), (16, 16), mode="bilinear"))  # of no other colours
    cubic = built(teacher=str(folders / "dinov3_vit"), teacher_size=8, teacher_resize="bicubic").teacher
    colours = (F.interpolate(images(12), (8, 8), mode="bicubic") + 1) / 2
    torch.testing.assert_close(cubic.pixels(images(12)), (colours - cubic.mean) / cubic.std)
    recipe.weights = Weights(dinov2_base=str(folders / "dinov2"))
    assert built().name == built(teacher="dinov2_base").name == "dinov2_16"
    recipe.weights = Weights()
    with caplog.at_level(logging.WARNING):
        assert built(layer=1).width == 32 and "dinov2_base are not on this machine, so a classifier" in caplog.text
    for node, words in (
        (
            {"teacher": "dinov2"},
            r"^teacher: 'dinov2' is no folder here, .* none of dinov2_small, dinov2_base, dinov2_large",
        ),
        ({"teacher": str(folders / "clip"), "layer": 7}, "^there is no layer 7 in a clip of 2"),
        ({"teacher": str(tmp_path)}, "holds no config.json"),
        ({"teacher": "classifier", "layer": 3}, "^layer 3 is asked for; the classifier's are 0 to 2, or -1"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            FeatureMaps(recipe, Relational, node).check()
        assert "\n" not in str(error.value)
    assert FeatureMaps(recipe, Relational, {"teacher": "dinov3_large"}).missing == ["dinov3_large"]
    for node in ({}, {"teacher": "classifier", "layer": 1}, {"teacher": "someone/vit-tiny"}):
        FeatureMaps(recipe, Relational, node).check()
