"""The judge: a classifier of the training images, which a report and a card of the same data and seed train alike."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.draws import mix
from pipeline.features.extractors import ClassifierFeatures
from pipeline.features.passes import evenly_spaced
from pipeline.files.writing import read_json, write_json
from pipeline.images.ahead import read_all
from pipeline.images.reading import Images
from pipeline.nn.feature_distance import Backbone
from pipeline.stored_weights import check_component
from pipeline.teachers.classifier import Classifier, fit
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.vision.weights import digest, locate

NOTE = "judge.json"  # the images and the seed of its training
VALUES = 2**28  # numbers in the images that train it, at most: 1 GiB


def fit_judge(train: Images, seed: int, device: torch.device, folder: Path, earlier: Path | None = None) -> None:
    """Train a judge on a training split, with `judge_seed(seed)`, and save it in `folder`.

    The judge in the folder `earlier` is copied where it was trained on the same images with the same seed.
    """
    cause = {
        "images": train.fingerprint(),
        "size": train.data.image_size,
        "seed": judge_seed(seed),
        "torch": torch.__version__,
    }
    if earlier is not None and (earlier / NOTE).is_file() and read_json(earlier / NOTE) == cause:
        shutil.copytree(earlier, folder, dirs_exist_ok=True)
        return
    batch = read_all(
        train, evenly_spaced(None, len(train), min(len(train), VALUES // math.prod(train.data.image_shape)))
    )
    labels = batch.condition.labels if batch.condition else None
    fit(batch.images.to(device), labels, train.num_classes, seed=judge_seed(seed)).save_pretrained(folder)
    write_json(folder / NOTE, cause)


def judge_seed(seed: int) -> int:
    """A seed that no tokenizer's training uses."""
    return mix(seed, "judge")


def load_judge(folder: Path, device: torch.device) -> Classifier:
    """Frozen, in evaluation mode."""
    check_component(Classifier, folder)
    return Classifier.from_pretrained(folder).requires_grad_(False).eval().to(device)


def judge_features(judge: Classifier, folder: Path) -> ClassifierFeatures:
    """The features of the judge that lies in `folder`."""
    return ClassifierFeatures(judge, digest(folder / "diffusion_pytorch_model.safetensors"))


def perceptual_backbone(
    judge: ClassifierFeatures, weights: Mapping[str, str], shorter_side: int
) -> tuple[Backbone, dict[str, Any]]:
    """The backbone of the perceptual distance and its protocol: LPIPS-VGG where this machine has it, else the judge.

    `weights` are the recipe's; images of fewer than 16 pixels per side are too small for VGG.
    """
    files = [locate(name, weights) for name in LpipsVgg.FILES]
    if not all(files) or shorter_side < LpipsVgg.SMALLEST:
        return judge.network, judge.describe() | {"what": "feature maps of the judge, all channels alike"}
    backbone = LpipsVgg.load(*files).to(judge.network.device)
    return backbone, {"kind": backbone.name, "weights_sha256": [digest(path) for path in files], "resize": "none"}
