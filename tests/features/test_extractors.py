"""The features that distances are measured on: how they see images, and what is said without their weights."""

import hashlib

import numpy as np
import pytest
import torch
from golden_kinds.inception import ruled
from huggingface_hub.errors import LocalEntryNotFoundError
from metric_inputs import measured, sample_inputs
from PIL import Image
from support.vision_folders import save_models
from torch import Tensor

from pipeline.checks.recipe import check_recipe
from pipeline.checks.weights import check_weights
from pipeline.features import choice
from pipeline.features.choice import build_features, check_features
from pipeline.features.extractors import InceptionFeatures, VisionFeatures
from pipeline.images.eight_bits import levels
from pipeline.metrics.cmmd import CMMD
from pipeline.metrics.density_coverage import DensityCoverage
from pipeline.metrics.frechet_distance import FrechetDistance
from pipeline.metrics.inception_score import InceptionScore
from pipeline.metrics.kernel_distance import KernelDistance
from pipeline.metrics.precision_recall import PrecisionRecall
from pipeline.nn.resize import RULES, resize_antialias, resize_clean
from pipeline.recipes.schema import load
from pipeline.teachers.inception import Inception
from pipeline.teachers.vision_model import VisionModel
from pipeline.vision import weights
from pipeline.vision.backbone import FAMILIES


@pytest.fixture(scope="module")
def inception() -> Inception:
    return ruled()


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch, tmp_path):
    """No weights of the machine the tests run on."""
    monkeypatch.setenv("TESSERA_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "none"))
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_: None)


def pictures(count: int, size: int = 24, seed: int = 0) -> Tensor:
    """Images of 8 bits in [-1, 1]."""
    draws = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return draws / 127.5 - 1


@pytest.mark.parametrize("before, after", [(40, 17), (17, 40)])
def test_clean_and_antialias_are_what_pillow_does_to_floats_and_to_bytes(before, after):
    pixels = np.random.default_rng(0).integers(0, 256, (before, before + 3, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    channels = [Image.fromarray(pixels[..., c].astype(np.float32)) for c in range(3)]
    floats = np.stack([np.asarray(c.resize((after + 2, after), Image.Resampling.BICUBIC)) for c in channels])
    bytes_ = np.asarray(Image.fromarray(pixels).resize((after + 2, after), Image.Resampling.BICUBIC))
    clean, rounded = resize_clean(images, after, after + 2)[0], resize_antialias(images, after, after + 2)[0]
    torch.testing.assert_close(clean, torch.from_numpy(floats), rtol=0, atol=2e-3)
    difference = (rounded - torch.from_numpy(bytes_.copy()).permute(2, 0, 1)).abs()
    assert difference.max() <= 1 and difference.mean() < 0.1
    assert torch.equal(rounded, rounded.round()) and rounded.min() >= 0 and rounded.max() <= 255
    if after > before:
        assert clean.min() < 0 or clean.max() > 255, "floats are not clipped"


def test_one_pass_of_inception_gives_pooled_and_spatial_features_and_logits(inception):
    features = InceptionFeatures(inception, sha256="s")
    rows = features.extract_all(pictures(3))
    widths = {name: of["width"] for name, of in features.statistics().items()}
    assert {name: list(values.shape) for name, values in rows.items()} == {
        "inception": [3, widths["inception"]],
        "inception_spatial": [3, widths["inception_spatial"]],
        "inception_logits": [3, 1008],
    }
    assert torch.equal(features.extract(pictures(3)), rows["inception"])
    assert features.describe()["resize"].startswith("tensorflow1 to 299 x 299")
    for rule in ("antialias", "clean"):
        other = InceptionFeatures(inception, "s", rule)
        assert other.describe()["resize"].startswith(rule)
        assert not torch.allclose(other.extract(pictures(1)), rows["inception"][:1], rtol=1e-3), rule
    assert set(RULES) == {"tensorflow1", "antialias", "clean"}


def test_inception_is_loaded_from_the_published_file_alone(inception, tmp_path, monkeypatch):
    path = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(inception.state_dict(), path)
    with pytest.raises(ValueError, match="is not the published inception"):
        Inception.load(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.KNOWN["inception"].sha256 == weights.KNOWN["inception_torch_fidelity"].sha256
    monkeypatch.setattr(weights, "verify", lambda *_: None)
    monkeypatch.setattr("pipeline.teachers.inception.verify", lambda *_: None)
    monkeypatch.setenv("TESSERA_WEIGHTS", str(tmp_path))  # under the name that torch-fidelity gives it
    (features,) = build_features(["inception"], {}, "clean", torch.device("cpu"))
    assert features.sha256 == sha256 and features.resize == "clean"
    assert torch.equal(features.extract(pictures(1)), InceptionFeatures(inception, "", "clean").extract(pictures(1)))


@pytest.mark.parametrize("kind", ["inception", "dinov2", "clip", "siglip"])
def test_missing_weights_are_one_line_when_a_recipe_is_loaded(kind):
    recipe = load("digits", [f"evaluate.features=[pixels,{kind}]"])
    check_recipe(recipe)
    with pytest.raises(ValueError, match=f"^evaluate.features: the weights {choice.WEIGHTS[kind][0]} are not") as error:
        check_weights(recipe)
    known = weights.KNOWN[choice.WEIGHTS[kind][0]]
    assert known.name in str(error.value) and "\n" not in str(error.value)
    assert f"weights.{choice.WEIGHTS[kind][0]}" in str(error.value)


def test_unknown_features_and_stated_files_that_are_not_there():
    with pytest.raises(ValueError, match="did you mean 'inception'"):
        check_features(["incepton"], {})
    with pytest.raises(ValueError, match="weights.inception: there is no file"):
        check_features(["inception"], {"inception": "nowhere/file.pth"})
    check_features(["dinov2"], {"dinov2_large": "facebook/dinov2-small"})  # which is fetched later


def test_a_hub_id_without_a_network_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(weights, "snapshot_download", fail)
    with pytest.raises(ValueError, match="facebook/dinov2-small is no folder here, and from the hub: no network$"):
        build_features(["dinov2"], {"dinov2_large": "facebook/dinov2-small"}, "clean", torch.device("cpu"))


def test_vision_models_see_what_transformers_gives(tmp_path):
    whole = save_models(tmp_path)
    stated = {choice.WEIGHTS[kind][0]: str(tmp_path / kind) for kind in whole}
    features = build_features(["dinov2", "clip", "siglip"], stated, "tensorflow1", torch.device("cpu"))
    images = levels(pictures(2, 20))
    for feature in features:
        kind = feature.name
        size = {"dinov2": 224}.get(kind, 12)
        pixels = resize_antialias(images, size, size) / 255
        mean, std = torch.tensor(FAMILIES[kind].colours)[:, :, None, None]
        pixels = (pixels - mean) / std
        with torch.no_grad():
            if kind == "dinov2":
                expected = whole[kind](pixel_values=pixels).pooler_output  # the class token after the last norm
            else:
                found = whole[kind].get_image_features(pixel_values=pixels)
                expected = found if isinstance(found, Tensor) else found.pooler_output
        rows = feature.extract(pictures(2, 20))
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
        described = feature.describe()
        assert described["width"] == rows.shape[1] and f"{size} x {size}" in described["resize"]
        assert len(described["weights_sha256"]) == 64 and described["kind"] == kind


def test_a_folder_of_another_model_is_refused_before_it_is_read(tmp_path):
    save_models(tmp_path)
    with pytest.raises(ValueError, match="holds a siglip, not a clip"):
        check_features(["clip"], {"clip_large_336": str(tmp_path / "siglip")})


def test_numbers_on_inception_and_clip_carry_their_names_and_protocol(inception, tmp_path):
    features = InceptionFeatures(inception, "sha")
    widths = {name: of["width"] for name, of in features.statistics().items()} | {"inception_logits": 1008}
    sets = [{name: torch.randn(count, width) for name, width in widths.items()} for count in (3, 3, 4)]
    found = measured(FrechetDistance(), sample_inputs([features], *sets))
    assert set(found) == {"fd_inception", "fd_inception_spatial"}
    assert found["fd_inception"].title.endswith("(FID)") and found["fd_inception_spatial"].title.endswith("(sFID)")
    assert found["fd_inception"].headline and not found["fd_inception_spatial"].headline
    assert found["fd_inception_spatial"].protocol["features"]["width"] == 2023
    (score,) = measured(InceptionScore(), sample_inputs([features], *sets, score=1.5, score_of_real=1.4)).values()
    assert score.held_out == 1.4 and score.protocol["features"]["weights_sha256"] == "sha"
    more = sample_inputs([features], *sets, score=1.5, count=4)
    assert measured(InceptionScore(), more)["inception_score"].held_out is None
    save_models(tmp_path)
    clip = VisionFeatures("clip", VisionModel.load(tmp_path / "clip", "clip"), "sha")
    inputs = sample_inputs([clip], *({"clip": torch.randn(9, 6)} for _ in range(3)))
    metrics = KernelDistance(), CMMD(), PrecisionRecall(3), DensityCoverage()
    names = {name.removesuffix("_clip") for metric in metrics for name in measured(metric, inputs)}
    assert names == {"kd", "cmmd", "precision", "recall", "density", "coverage"}
