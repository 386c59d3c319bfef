"""Losses, critics and weight files: each pushes the right way and says what it measures."""

import hashlib

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.code import Code
from pipeline.components import Arguments
from pipeline.critics.patch import Patch
from pipeline.losses.perceptual import Perceptual
from pipeline.losses.pixel import Pixel
from pipeline.nn.feature_distance import perceptual_distance
from pipeline.teachers.classifier import Classifier
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.vision import weights


def rebuilt(images: Tensor) -> TokenizerOutput:
    return TokenizerOutput(images, Code(), {})


def classifier() -> Classifier:
    return Classifier(num_classes=3, width=8).eval()


@pytest.mark.parametrize("loss", [Pixel("l1"), Pixel("l2"), Perceptual(classifier())], ids=["l1", "l2", "perceptual"])
def test_each_loss_is_zero_at_the_truth_and_leads_there(loss):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    (name,) = loss.terms
    assert loss(images, rebuilt(images))[name] == 0
    made = (images + 0.3 * torch.randn_like(images)).requires_grad_()
    value = loss(images, rebuilt(made))[name]
    value.backward()
    downhill = made.detach() - 1e-3 * made.grad / made.grad.norm()
    assert value > 0 and loss(images, rebuilt(downhill))[name] < value


def test_pixel_losses_are_means_per_element():
    images, made = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    assert Pixel("l1")(images, rebuilt(made))["pixel"] == 0.5
    assert Pixel("l2")(images, rebuilt(made))["pixel"] == 0.25


def test_the_backbone_stays_frozen_and_in_evaluation_mode_and_gives_the_name():
    loss = Perceptual(classifier().train()).train()
    assert loss.name == "classifier" and not loss.extractor.training
    made = torch.randn(1, 3, 16, 16, requires_grad=True)
    loss(torch.zeros(1, 3, 16, 16), rebuilt(made))["perceptual"].backward()
    assert made.grad.abs().sum() > 0 and all(p.grad is None for p in loss.parameters())


class Maps(nn.Module):
    """Feature maps as they are given; `map_weights` as LPIPS has them."""

    name = "maps"

    def __init__(self, map_weights: list[Tensor] | None = None):
        super().__init__()
        self.map_weights = map_weights

    def maps(self, images: Tensor) -> list[Tensor]:
        return [images, images[:, :, :1]]


def test_perceptual_distance_by_hand():
    a, b = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    square = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square()
    plain = (square.sum(1).mean((1, 2)) + square[:, :, :1].sum(1).mean((1, 2))) / 2
    torch.testing.assert_close(perceptual_distance(Maps(), a, b), plain)
    w = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, 0.0])]
    weighted = (square * w[0].view(1, 3, 1, 1)).sum(1).mean((1, 2)) + 0.5 * square[:, 0, :1].mean((1, 2))
    torch.testing.assert_close(perceptual_distance(Maps(w), a, b), weighted)


def test_positions_without_features_have_finite_gradients():
    made = torch.zeros(1, 3, 2, 2, requires_grad=True)
    perceptual_distance(Maps(), torch.ones(1, 3, 2, 2), made).sum().backward()
    assert made.grad.isfinite().all()


def published_states() -> tuple[dict[str, Tensor], dict[str, Tensor], nn.Sequential]:
    """Random weights under the published names, and torchvision's layout of VGG16's features."""
    layers: list[nn.Module] = []
    width = 3
    for entry in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if entry == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(width, entry, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
            width = entry
    vgg = nn.Sequential(*layers)
    features = {f"features.{name}": value for name, value in vgg.state_dict().items()}
    linear = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 128, 256, 512, 512))}
    return features | {"classifier.0.bias": torch.zeros(1)}, linear, vgg


@torch.no_grad()
def test_lpips_vgg_is_the_published_function(tmp_path):
    features, linear, vgg = published_states()
    torch.save(features, tmp_path / "vgg.pth")
    torch.save(linear, tmp_path / "lin.pth")
    network = LpipsVgg.load(tmp_path / "vgg.pth", tmp_path / "lin.pth", check=False)
    a, b = torch.rand(2, 1, 3, 16, 16) * 2 - 1

    def taps(x: Tensor) -> list[Tensor]:
        shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        x = (x - shift) / torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        found = []
        for i, layer in enumerate(vgg[:30]):
            x = layer(x)
            if i in (3, 8, 15, 22, 29):  # relu1_2, 2_2, 3_3, 4_3, 5_3
                found.append(x)
        return found

    expected = 0
    for i, (p, q) in enumerate(zip(taps(a), taps(b))):
        square = (p / p.norm(dim=1, keepdim=True) - q / q.norm(dim=1, keepdim=True)).square()
        expected += F.conv2d(square.nan_to_num(), linear[f"lin{i}.model.1.weight"]).mean()
    torch.testing.assert_close(perceptual_distance(network, a, b)[0], expected, atol=1e-4, rtol=1e-3)
    assert Perceptual(network).name == "lpips_vgg"
    with pytest.raises(ValueError, match="16 pixels"):
        network.maps(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="not the published vgg16"):
        LpipsVgg.load(tmp_path / "vgg.pth", tmp_path / "lin.pth")


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_patch_judges_images_down_to_the_smallest_it_names(layers, norm):
    critic = Patch(8, layers, norm).eval()
    side = Patch.smallest(Arguments.from_config(critic))
    assert critic(torch.zeros(2, 3, side, side)).shape == (2, 1, 1, 1)
    with pytest.raises(RuntimeError):
        critic(torch.zeros(2, 3, side - 1, side - 1))


def test_a_verdict_of_the_group_norm_depends_on_its_own_image_alone():
    images = torch.randn(3, 3, 16, 16)
    critic = Patch(8, 2, "group").train()
    torch.testing.assert_close(critic(images)[:1], critic(images[:1]))
    assert not torch.allclose(Patch(8, 2, "batch").train()(images)[:1], Patch(8, 2, "batch").train()(images[:1]))


def test_patch_is_saved_and_loaded(tmp_path):
    critic, images = Patch(8, 1, "batch").eval(), torch.randn(2, 3, 12, 12)
    critic.save_pretrained(tmp_path)
    assert torch.equal(Patch.from_pretrained(tmp_path)(images), critic(images))


def test_weight_files_are_found_in_order(tmp_path, monkeypatch):
    name = weights.KNOWN["vgg16"].name
    monkeypatch.delenv("TESSERA_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert weights.locate("vgg16", {}) is None
    found = []
    for folder in (tmp_path / "torch/hub/checkpoints", tmp_path / "own", tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"weights")
        if folder.name == "own":
            monkeypatch.setenv("TESSERA_WEIGHTS", str(folder))
        stated = {"vgg16": str(folder / name)} if folder == tmp_path else {}
        found.append(weights.locate("vgg16", stated) == folder / name)
    assert found == [True, True, True]


def test_folders_of_weights_are_found_in_order_and_only_whole(tmp_path, monkeypatch):
    monkeypatch.delenv("TESSERA_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cache = tmp_path / "hub/models--facebook--dinov2-base"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("0123abc")
    own, stated = tmp_path / "own/dinov2-base", tmp_path / "stated"
    before = None
    for folder, given in ((cache / "snapshots/0123abc", {}), (own, {}), (stated, {"dinov2_base": str(stated)})):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        if folder == own:
            monkeypatch.setenv("TESSERA_WEIGHTS", str(own.parent))
        assert weights.locate("dinov2_base", {}) == before
        if given:
            with pytest.raises(ValueError, match="no folder .* with config.json and model.safetensors; run hf"):
                weights.locate("dinov2_base", given)
        (folder / "model.safetensors").write_bytes(b"weights")
        assert weights.locate("dinov2_base", given) == weights.require("dinov2_base", given) == folder
        before = folder


def test_missing_and_wrong_weight_files_are_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("TESSERA_WEIGHTS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    known = weights.KNOWN["lpips_vgg"]
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    for stated, words in (
        ({}, "not on this machine"),
        ({"lpips_vgg": str(tmp_path / "absent.pth")}, "there is no file"),
        ({"lpips_vgg": str(wrong)}, f"its sha256 is {digest}"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            weights.require("lpips_vgg", stated)
        message = str(caught.value)
        assert known.name in message and known.source in message and known.sha256 in message and "\n" not in message
    with pytest.raises(ValueError, match="weights.lpips: there are no weights of this name"):
        weights.locate("vgg16", {"lpips": "x"})
    assert weights.table().count("missing") == len(weights.KNOWN)


def test_file_names_carry_the_beginning_of_their_digest():
    """torch.hub's habit, by which a wrong digest in the table would show."""
    marked = {name: k for name, k in weights.KNOWN.items() if isinstance(k, weights.File) and "-" in k.name}
    assert set(marked) == {"vgg16", "inception", "inception_torch_fidelity", "convnext_small"}
    for known in marked.values():
        assert known.name.rpartition("-")[2].removesuffix(".pth") == known.sha256[:8]
