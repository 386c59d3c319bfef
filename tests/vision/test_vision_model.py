"""Vision models from their folders: what they see of images, and which folders are refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from support.vision_folders import HALF, IMAGE, save_models
from torch import Tensor
from torch.nn import functional as F

from pipeline.teachers.vision_model import VisionModel
from pipeline.vision import weights
from pipeline.vision.backbone import FAMILIES, IMAGENET, name_of

PREFIX = {"dinov2": 1, "clip": 1, "siglip": 0, "dinov3_vit": 5, "vit_mae": 1, "ijepa": 0, "dinov2_with_registers": 5}


def images(side: int = 12) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(side)) * 2 - 1


def save_other_models(folder: Path) -> dict[str, t.PreTrainedModel]:
    """A tiny model of some families that are read as any other."""
    whole = {
        "dinov3_vit": t.DINOv3ViTModel(t.DINOv3ViTConfig(**IMAGE, num_register_tokens=4)),
        "vit_mae": t.ViTMAEModel(t.ViTMAEConfig(**IMAGE)),
        "ijepa": t.IJepaModel(t.IJepaConfig(**IMAGE), add_pooling_layer=False),
        "dinov2_with_registers": t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**IMAGE)),
    }
    for kind, model in whole.items():
        model.eval().save_pretrained(folder / kind)
    return whole


@torch.no_grad()
@pytest.mark.parametrize("save", [save_models, save_other_models])
def test_tokens_and_features_are_those_of_transformers(save, tmp_path):
    for kind, whole in save(tmp_path).items():
        loaded, half = VisionModel.load(tmp_path / kind, kind), getattr(whole, "vision_model", whole)
        side, noise = half.config.image_size, {}
        if kind == "vit_mae":  # all tokens, in their places
            half.config.mask_ratio, noise = 0.0, {"noise": torch.arange(9.0).expand(2, 9)}
        mean, std = torch.tensor(FAMILIES[kind].colours if kind in FAMILIES else IMAGENET)[:, :, None, None]
        stock = half(((images(side) + 1) / 2 - mean) / std, output_hidden_states=True, **noise)
        last = stock.last_hidden_state
        for layer, expected in ((None, last), (0, stock.hidden_states[0]), (1, stock.hidden_states[1])):
            found = loaded.tokens(images(side), layer)
            torch.testing.assert_close(found, expected[:, PREFIX[kind] :], rtol=1e-4, atol=1e-5, msg=f"{kind} {layer}")
            assert found.shape[1:] == ((side // half.config.patch_size) ** 2, loaded.width), kind
        torch.testing.assert_close(loaded.mean_token(images(side)), last.mean(dim=1), rtol=1e-4, atol=1e-5, msg=kind)
        features = {"dinov2": last[:, 0], "siglip": stock.get("pooler_output")}.get(kind, last.mean(dim=1))
        if kind == "clip":
            features = whole.visual_projection(stock.pooler_output)
        torch.testing.assert_close(loaded.features(images(side)), features, rtol=1e-4, atol=1e-5, msg=kind)
        assert features.shape[1] == loaded.dim and loaded.name in (kind, "dinov2_16")
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


@pytest.fixture
def dinov2(tmp_path) -> Path:
    t.Dinov2Model(t.Dinov2Config(**HALF, patch_size=14, image_size=42)).save_pretrained(tmp_path / "dinov2")
    return tmp_path / "dinov2"


@torch.no_grad()
def test_on_a_grid_sixteen_pixels_are_a_patch(dinov2):
    teacher, stock = VisionModel.load(dinov2, size="grid"), t.Dinov2Model.from_pretrained(dinov2).eval()
    mean, std = torch.tensor(IMAGENET)[:, :, None, None]
    seen = F.interpolate(images(32), (28, 28), mode="bicubic", antialias=True)
    torch.testing.assert_close(teacher.features(images(32)), stock(((seen + 1) / 2 - mean) / std).pooler_output)
    sides = {8: (14, 1), 16: (14, 1), 32: (28, 4), 48: (42, 9)}
    for side, (pixels, places) in sides.items():
        assert teacher.pixels(images(side)).shape[2:] == (pixels, pixels)
        assert teacher.tokens(images(side)).shape == (2, places, 16)
    assert teacher.pixels(torch.zeros(1, 3, 256, 512)).shape[2:] == (224, 448)
    assert teacher.tokens(torch.zeros(1, 3, 16, 48)).shape == (1, 3, 16)


@torch.no_grad()
def test_a_model_sees_its_own_size_or_the_one_that_is_stated(tmp_path):
    save_models(tmp_path)
    save_other_models(tmp_path)
    for kind in PREFIX:
        loaded = VisionModel.load(tmp_path / kind)
        assert loaded.pixels(images(20)).shape[2] == loaded.model.config.image_size, kind
        assert torch.equal(loaded.features(images(20)), loaded.features(images(20))), kind
        places = (24 // loaded.model.config.patch_size) ** 2
        if kind != "dinov2":  # whose patches here are larger
            stated = VisionModel.load(tmp_path / kind, size=24).tokens(images(20))
            assert places == 36 and stated.shape == (2, 36, 16) and stated.isfinite().all(), kind


def test_a_check_of_a_folder_imports_no_models_of_transformers(dinov2):
    code = "import sys, pathlib, pipeline.frozen.class_features\n"
    code += "import pipeline.features.choice, pipeline.measuring.card_networks\n"
    code += "from pipeline.vision.backbone import read_kind\n"
    code += "assert read_kind(pathlib.Path(sys.argv[1]), 'dinov2') and 'transformers.modeling_utils' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(dinov2)], check=True)


def test_colours_are_as_the_folder_says(dinov2):
    assert torch.equal(VisionModel.load(dinov2).mean.flatten(), torch.tensor(IMAGENET[0]))
    stated = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.25, 0.5, 0.5]}
    (dinov2 / "preprocessor_config.json").write_text(json.dumps(stated))
    seen = VisionModel.load(dinov2).pixels(torch.zeros(1, 3, 42, 42))
    torch.testing.assert_close(seen[0, :, 0, 0], torch.tensor([1.6, 0.6, 0.4]))


def test_published_sizes_have_published_names():
    letters = [name_of("dinov2", width) for width in (384, 768, 1024, 1536, 32)]
    assert letters == ["dinov2_s", "dinov2_b", "dinov2_l", "dinov2_g", "dinov2_32"]
    assert (name_of("clip", 1024), name_of("dinov3_vit", 768)) == ("clip", "dinov3_vit")


def test_folders_that_are_unsafe_torn_or_of_another_model_are_refused(dinov2, tmp_path):
    def refused(folder: Path, words: str, kind: str | None = None) -> None:
        with pytest.raises(ValueError, match=words) as error:
            VisionModel.load(folder, kind)
        assert "\n" not in str(error.value)

    file = dinov2 / "model.safetensors"
    state = load_file(file)
    save_file({name: value for name, value in state.items() if name != "layernorm.bias"}, file, {"format": "pt"})
    refused(dinov2, "lacks layernorm.bias of a dinov2; fetch it again")
    torch.save(state, dinov2 / "pytorch_model.bin")
    file.unlink()
    refused(dinov2, "holds no model.safetensors, and other weights of a dinov2 are not read")
    t.ViTModel(t.ViTConfig(**IMAGE)).save_pretrained(tmp_path / "vit")
    refused(tmp_path / "vit", "holds a vit, not a dinov2", "dinov2")
    refused(tmp_path, "holds no config.json; name the folder")
    text = t.BertConfig(**HALF, vocab_size=20, max_position_embeddings=8)
    t.BertModel(text).save_pretrained(tmp_path / "text")
    refused(tmp_path / "text", "a BertModel, which reads no images of one size")
    (tmp_path / "vit/config.json").write_text('{"model_type": "vit_of_tomorrow"}')
    refused(tmp_path / "vit", "holds a vit_of_tomorrow, which transformers here does not know")


@torch.no_grad()
def test_a_model_that_merges_patches_has_features_but_no_tokens(tmp_path):
    config = t.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    t.SwinModel(config).save_pretrained(tmp_path / "swin")
    swin = VisionModel.load(tmp_path / "swin")
    assert swin.features(images(32)).shape == (2, 16) == (2, swin.dim)
    with pytest.raises(ValueError, match="a swin merges its 64 patches into 16 tokens"):
        swin.tokens(images(32))
    convnext = t.ConvNextModel(t.ConvNextConfig(image_size=32, hidden_sizes=[4, 6], depths=[1, 1], num_stages=2))
    convnext.save_pretrained(tmp_path / "convnext")
    convnext = VisionModel.load(tmp_path / "convnext")
    assert convnext.features(images(32)).shape == (2, 6) == (2, convnext.dim)


def test_weights_that_the_hub_has_only_as_a_pickle_are_read_without_running_it(tmp_path):
    whole = save_models(tmp_path)
    folder = tmp_path / "clip"
    (folder / "model.safetensors").unlink()
    torch.save(whole["clip"].state_dict(), folder / "pytorch_model.bin")
    network = VisionModel.load(folder, "clip")
    assert torch.equal(network.model.visual_projection.weight, whole["clip"].visual_projection.weight)
    assert weights.locate("clip_large_336", {"clip_large_336": str(folder)}) == folder
    torch.save({"run": print}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights.only|Unsupported|unpickl"):
        VisionModel.load(folder, "clip")
