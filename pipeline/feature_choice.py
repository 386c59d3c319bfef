"""The features that `evaluate.features` names: whether they can be had on this machine, and building them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pipeline.components import suggestion
from pipeline.metrics.base import Features
from pipeline.metrics.features import ClassifierFeatures, InceptionFeatures, PixelFeatures, VisionFeatures
from pipeline.teachers.inception import Inception
from pipeline.teachers.vision_model import VisionModel, check_folder
from pipeline.weights import KNOWN, OF_A_FOLDER, digest, locate, remedy

WEIGHTS = {  # names in pipeline.weights, any of which will do
    "inception": ("inception", "inception_torch_fidelity"),
    "dinov2": ("dinov2_large",),
    "clip": ("clip_large_336",),
    "siglip": ("siglip_base",),
}
KINDS = ("classifier", "pixels", *WEIGHTS)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_features(kinds: Sequence[str], stated: Mapping[str, str]) -> None:
    """ValueError when `evaluate.features` names what is not there, or what has no weights on this machine."""
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"evaluate.features: there are no features {kind!r}{suggestion(kind, list(KINDS))}")
        if kind in WEIGHTS and isinstance(found := find_weights(kind, stated), Path) and found.is_dir():
            check_folder(found, kind)


def build_features(
    kinds: Sequence[str],
    stated: Mapping[str, str],
    resize: str,
    device: torch.device,
    classifier: ClassifierFeatures | None = None,
) -> list[Features]:
    """The features of these kinds, in order, on `device`; `stated` are the recipe's weights.

    `resize` is Inception's rule, `classifier` what this kind comes to. Raises ValueError where weights are missing, are
    others than they should be, or cannot be fetched from the hub.
    """
    check_features(kinds, stated)
    own = {"classifier": classifier, "pixels": PixelFeatures()}
    return [own[kind] if kind in own else _published(kind, stated, resize, device) for kind in kinds]


def find_weights(kind: str, stated: Mapping[str, str]) -> Path | str:
    """The file or folder of a published network, or the hub id that the recipe states in its place."""
    for name in WEIGHTS[kind]:
        given = stated.get(name)
        if given and name != "inception" and HUB_ID.fullmatch(given) and not Path(given).expanduser().exists():
            return given
    found = [path for name in WEIGHTS[kind] if (path := locate(name, stated))]
    if not found:
        raise ValueError(
            f"evaluate.features names {kind}, whose weights are not on this machine; {remedy(WEIGHTS[kind][0])}"
        )
    return found[0]


def _published(kind: str, stated: Mapping[str, str], resize: str, device: torch.device) -> Features:
    found = find_weights(kind, stated)
    if kind == "inception":
        return InceptionFeatures(Inception.load(found).to(device), digest(found), resize)
    folder = found if isinstance(found, Path) else fetched(found, WEIGHTS[kind][0])
    network = VisionModel.load(folder, kind).to(device)
    return VisionFeatures(kind, network, digest(KNOWN[WEIGHTS[kind][0]].file(folder)))


def fetched(hub_id: str, name: str) -> Path:
    """The folder of a model of the hub in its cache, fetched if it is not there; ValueError where it cannot be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(OF_A_FOLDER)))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"weights.{name}: {hub_id} is no folder here, and from the hub: {reason}") from None
    if not KNOWN[name].is_at(folder):
        raise ValueError(f"weights.{name}: {hub_id} has not {' and '.join(OF_A_FOLDER)}; {remedy(name)}")
    return folder
