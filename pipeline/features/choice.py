"""The features that `evaluate.features` names: whether they can be had on this machine, and building them."""

from collections.abc import Mapping, Sequence

import torch

from pipeline.features.extractors import (
    ClassifierFeatures,
    FeatureExtractor,
    InceptionFeatures,
    PixelFeatures,
    VisionFeatures,
)
from pipeline.teachers.inception import Inception
from pipeline.teachers.vision_model import VisionModel
from pipeline.validation import suggestion
from pipeline.vision.backbone import read_kind
from pipeline.vision.weights import KNOWN, digest, hub_id, locate, remedy, require

WEIGHTS = {  # names in pipeline.vision.weights, any of which will do
    "inception": ("inception", "inception_torch_fidelity"),
    "dinov2": ("dinov2_large",),
    "clip": ("clip_large_336",),
    "siglip": ("siglip_base",),
}
KINDS = ("classifier", "pixels", *WEIGHTS)
SIZES = {"dinov2": 224}  # pixels per side that published distances are on; the other models have their own


def check_features(kinds: Sequence[str], weights: Mapping[str, str]) -> None:
    """ValueError when `evaluate.features` names what there is not, or weights of another model.

    Weights that are not on this machine are told by `missing_weights`.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"evaluate.features: there are no features {kind!r}{suggestion(kind, list(KINDS))}")
        if kind in WEIGHTS and (name := name_here(kind, weights)):
            path = locate(name, weights)
            if path is not None and path.is_dir():
                read_kind(path, kind)


def build_features(
    kinds: Sequence[str],
    weights: Mapping[str, str],
    resize: str,
    device: torch.device,
    classifier: ClassifierFeatures | None = None,
) -> list[FeatureExtractor]:
    """The features of these kinds, in order, on `device`; `stated` are the recipe's weights.

    `resize` is Inception's rule, `classifier` what this kind comes to. Raises ValueError where weights are missing, are
    others than they should be, or cannot be fetched from the hub.
    """
    check_features(kinds, weights)
    always_here = {"classifier": classifier, "pixels": PixelFeatures()}
    return [always_here[kind] if kind in always_here else _published(kind, weights, resize, device) for kind in kinds]


def weights_name(kind: str, weights: Mapping[str, str]) -> str:
    """The name in pipeline.vision.weights of those that a kind takes; ValueError where none are on this machine."""
    if name := name_here(kind, weights):
        return name
    raise ValueError(
        f"evaluate.features names {kind}, whose weights are not on this machine; {remedy(WEIGHTS[kind][0])}"
    )


def name_here(kind: str, weights: Mapping[str, str]) -> str | None:
    """As `weights_name`; None where none are on this machine, and none are fetched from the hub."""
    return next((name for name in WEIGHTS[kind] if locate(name, weights) or hub_id(name, weights)), None)


def _published(kind: str, weights: Mapping[str, str], resize: str, device: torch.device) -> FeatureExtractor:
    name = weights_name(kind, weights)
    path = require(name, weights)
    if kind == "inception":
        return InceptionFeatures(Inception.load(path).to(device), digest(path), resize)
    network = VisionModel.load(path, kind, SIZES.get(kind)).to(device)
    return VisionFeatures(kind, network, digest(KNOWN[name].file(path)))
