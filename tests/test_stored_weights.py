"""A config from elsewhere gets no memory that its weight files do not fill, and a damaged file is named."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from support.tiny_pipeline import make_pipeline
from support.vision_folders import save_models

from pipeline import LatentPipeline
from pipeline.critics.patch import Patch
from pipeline.sampling.weak_network import load_weak
from pipeline.saved_folders import load_component, load_tokenizer
from pipeline.stored_weights import Stored, build_on_meta, read_stored
from pipeline.teachers.classifier import Classifier
from pipeline.tokenizers.pretrained import Pretrained
from pipeline.vision.backbone import FAMILIES, GENERAL, load_model

OBJECTIVE = "objective/scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.tessera.safetensors"
ABSURD = [
    ("network", "depth", 3_000_000),
    ("network", "width", 2**20),
    ("network", "num_classes", 10**11),
    ("network", "grid", [2**16, 2**16]),
    ("network", "grid", [2**40, 2**40]),
    ("network", "heads", 3),
    ("tokenizer", "width", 2**20),
    ("tokenizer", "multipliers", [1] * 3000),
    ("tokenizer", "blocks", 10**9),
    ("tokenizer", "image_size", 2**24),
    ("tokenizer", "bottleneck", {"kind": "gaussian", "dim": 10**9}),
]
WRONG = [
    ("network", "depth", "many"),
    ("network", "depth", None),
    ("network", "grid", 4),
    ("network", "grid", []),
    ("network", "heads", 0),
    ("network", "patch_size", 0),
    ("network", "time_scale", float("nan")),
    ("tokenizer", "multipliers", "x"),
    ("tokenizer", "bottleneck", {"kind": "nothing"}),
    ("tokenizer", "bottleneck", None),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    make_pipeline().save_pretrained(folder)
    (folder / "checksums.json").unlink()  # whoever sends a folder writes these, too
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def state(config: Path, name: str, value: object) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | {name: value}))


def refused(call, *named: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError) as error:
        call()
    assert all(name in str(error.value) for name in named), error.value
    assert "\n" not in str(error.value) and len(str(error.value)) < 600 and time.monotonic() - began < 30


@pytest.mark.parametrize("part, name, value", ABSURD + WRONG, ids=lambda value: str(value)[:30])
def test_a_config_that_does_not_fit_its_weights_is_refused(folder, part, name, value):
    state(folder / part / "config.json", name, value)
    refused(lambda: LatentPipeline.from_pretrained(folder))


@pytest.mark.parametrize("name, value", [("depth", 3_000_000), ("num_classes", 10**11), ("width", 64)])
def test_the_weak_network_is_looked_at_too(folder, name, value):
    state(folder / "network" / "config.json", name, value)
    refused(lambda: load_weak(folder), "network")


@pytest.mark.parametrize("name, value", [("width", 2**20), ("blocks", 10**9), ("multipliers", [1, 2])])
def test_tokenizers_critics_and_teachers_in_folders_of_their_own(folder, tmp_path, name, value):
    state(folder / "tokenizer" / "config.json", name, value)
    refused(lambda: load_tokenizer(str(folder / "tokenizer"), "tokenizer.start"), "tokenizer")
    for number, (component, of, huge) in enumerate(
        ((Patch(width=8), "width", 2**22), (Classifier(4, 8), "num_classes", 10**11))
    ):
        place = tmp_path / str(number)
        component.save_pretrained(place)
        load_component(type(component), place)
        state(place / "config.json", of, huge)
        refused(lambda component=component, place=place: load_component(type(component), place), str(place))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1}', "\x00\x01", '{"_class_name": "LatentPipeline"}'])
@pytest.mark.parametrize("file", ["model_index.json", "network/config.json", "tokenizer/config.json", OBJECTIVE])
def test_a_damaged_json_file_is_named(folder, file, text):
    (folder / file).write_text(text)
    refused(lambda: LatentPipeline.from_pretrained(folder), Path(file).parts[0].removesuffix(".json"))


@pytest.mark.parametrize("part", ["network", "objective"])
def test_a_part_that_is_not_there_is_named(folder, part):
    shutil.rmtree(folder / part)
    refused(lambda: LatentPipeline.from_pretrained(folder), part, "get it again")
    given = LatentPipeline.from_pretrained  # one that is given is not looked for
    assert given(folder, **{part: getattr(make_pipeline(), part)}).num_classes == 4
    refused(lambda: given(folder, **{part: None}), "None")


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "missing", "noise"])
@pytest.mark.parametrize("part", ["network", "tokenizer"])
def test_a_damaged_weight_file_is_named(folder, part, damage):
    file = folder / part / WEIGHTS
    content = file.read_bytes()
    harm = {"empty": b"", "cut": content[: len(content) // 2], "header": content[:4], "noise": b"\xff" * 4096}
    file.unlink() if damage == "missing" else file.write_bytes(harm[damage])
    refused(lambda: LatentPipeline.from_pretrained(folder), part)


def test_a_weight_of_another_shape_is_named(folder):
    weights = load_file(folder / "network" / WEIGHTS)
    name = next(name for name, value in weights.items() if value.ndim == 2)
    save_file(weights | {name: torch.zeros(3, 3)}, folder / "network" / WEIGHTS, metadata={"format": "pt"})
    refused(lambda: LatentPipeline.from_pretrained(folder), name, "[3, 3]")


def test_parts_are_of_ours(folder):
    index = json.loads((folder / "model_index.json").read_text())
    for module, name in (("diffusers", "AutoencoderKL"), ("pipeline.networks.base", "math"), ("torch.nn", "Linear")):
        (folder / "model_index.json").write_text(json.dumps(index | {"network": [module, name]}))
        refused(lambda: LatentPipeline.from_pretrained(folder), "network")


def test_a_pipeline_is_a_tokenizer_and_a_network_of_the_same_codes(folder):
    state(folder / "tokenizer" / "config.json", "image_size", 32)
    refused(lambda: LatentPipeline.from_pretrained(folder), "grid=[8, 8]")


def test_pickles_are_neither_written_nor_read(saved, tmp_path):
    pipe = LatentPipeline.from_pretrained(saved)
    refused(lambda: pipe.save_pretrained(tmp_path / "bin", safe_serialization=False), "safetensors alone")
    refused(lambda: pipe.save_pretrained(tmp_path / "bin", False), "safetensors alone")
    assert not (tmp_path / "bin").exists()
    refused(lambda: LatentPipeline.from_pretrained(saved, use_safetensors=False), "safetensors alone")


def test_names_of_classes_stay_with_the_parts(saved):
    pipe = LatentPipeline.from_pretrained(saved)
    assert LatentPipeline(**pipe.components).id2label == pipe.id2label == LatentPipeline.from_pipe(pipe).id2label
    assert LatentPipeline(**pipe.components, id2label={0: "other"}).id2label == {0: "other"}
    assert "class_names" not in pipe.network.config


def test_building_stops_once_more_is_asked_for_than_is_stored(tmp_path):
    stored, built = Stored(tmp_path, {"weight": (4, 4)}), []

    def build() -> torch.nn.Module:
        layers = torch.nn.ModuleList()
        for i in range(10**9):
            built.append(i)
            layers.append(torch.nn.Linear(1, 1))
        return layers

    refused(lambda: build_on_meta(build, stored), str(tmp_path))
    assert len(built) < 1000
    assert build_on_meta(lambda: torch.nn.Linear(4, 4), stored).weight.is_meta
    torch.nn.Linear(2**13, 2**12)  # no limit is left behind
    assert read_stored(tmp_path).elements == 0


@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])
@pytest.mark.parametrize("name, value", [("hidden_size", 2**22), ("num_hidden_layers", 10**6), ("image_size", 10**9)])
def test_vision_models_are_looked_at_before_they_are_loaded(kind, name, value, tmp_path):
    save_models(tmp_path)
    load_model(tmp_path / kind, FAMILIES.get(kind, GENERAL))
    config = json.loads((tmp_path / kind / "config.json").read_text())
    config.get("vision_config", config)[name] = value
    (tmp_path / kind / "config.json").write_text(json.dumps(config))
    refused(lambda: load_model(tmp_path / kind, FAMILIES.get(kind, GENERAL)))


HUGE = [("block_out_channels", [2**22] * 2), ("layers_per_block", 10**6), ("norm_num_groups", 10**9)]


@pytest.mark.parametrize("name, value", HUGE)
def test_stock_autoencoders_are_looked_at_before_they_are_built(name, value, tmp_path):
    sizes = {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    AutoencoderKL(**sizes, **blocks).save_pretrained(tmp_path)
    assert Pretrained(16, str(tmp_path)).spec.dim == 4
    state(tmp_path / "config.json", name, value)
    refused(lambda: Pretrained(16, str(tmp_path)), "")
