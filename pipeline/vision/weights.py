"""Weights that cannot be bundled: where each is looked for, and what it must be."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from pipeline.files.paths import given_path, may_be_hub_id
from pipeline.validation import SettingError

OF_A_FOLDER = ("config.json", "model.safetensors")  # the files of a model
OPTIONAL = "preprocessor_config.json"  # how the model's images are normalised, where that is not as usual


@dataclass(frozen=True)
class File:
    """A published file: `name` is what it is called in $TESSERA_WEIGHTS and in torch.hub's cache."""

    name: str
    source: str
    sha256: str  # or the digits it begins with, where the publisher states no more
    licence: str

    def is_at(self, path: Path) -> bool:
        return path.is_file()

    def cached(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name

    @property
    def instruction(self) -> str:
        return f"put {self.name} from {self.source} (sha256 {self.sha256}) into $TESSERA_WEIGHTS"


@dataclass(frozen=True)
class Folder:
    """A published model of transformers: `name` is its folder in $TESSERA_WEIGHTS, `hub_id` that of the hub's cache.

    It holds config.json and model.safetensors. Which model they are, a reader tells from the config: no sha256 is known
    here.
    """

    name: str
    hub_id: str
    licence: str
    weights: str = OF_A_FOLDER[1]  # what the hub has of them

    def is_at(self, path: Path) -> bool:
        return (path / OF_A_FOLDER[0]).is_file() and self.file(path) is not None

    def file(self, path: Path) -> Path | None:
        """The file of the weights in a folder, or None."""
        return next((path / name for name in (OF_A_FOLDER[1], self.weights) if (path / name).is_file()), None)

    def cached(self) -> Path | None:
        config = try_to_load_from_cache(self.hub_id, OF_A_FOLDER[0])
        return Path(config).parent if isinstance(config, str) else None

    @property
    def instruction(self) -> str:
        return f"run hf download {self.hub_id} {OF_A_FOLDER[0]} {self.weights} --local-dir $TESSERA_WEIGHTS/{self.name}"


KNOWN = {
    "vgg16": File(
        "vgg16-397923af.pth",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        "BSD-3-Clause (torchvision)",
    ),
    "lpips_vgg": File(
        "lpips_vgg.pth",
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        "BSD-2-Clause (LPIPS)",
    ),
    "convnext_small": File(
        "convnext_small-0c510722.pth",
        "https://download.pytorch.org/models/convnext_small-0c510722.pth",
        "0c510722",
        "BSD-3-Clause (torchvision)",
    ),
    "inception": File(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "Apache-2.0 (pytorch-fid)",
    ),
    "inception_torch_fidelity": File(  # the same bytes as `inception`
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "Apache-2.0 (torch-fidelity)",
    ),
    "dinov2_small": Folder("dinov2-small", "facebook/dinov2-small", "Apache-2.0 (DINOv2)"),
    "dinov2_base": Folder("dinov2-base", "facebook/dinov2-base", "Apache-2.0 (DINOv2)"),
    "dinov2_large": Folder("dinov2-large", "facebook/dinov2-large", "Apache-2.0 (DINOv2)"),
    "clip_base": Folder("clip-vit-base-patch16", "openai/clip-vit-base-patch16", "MIT (CLIP)", "pytorch_model.bin"),
    "clip_large": Folder("clip-vit-large-patch14", "openai/clip-vit-large-patch14", "MIT (CLIP)"),
    "clip_large_336": Folder(
        "clip-vit-large-patch14-336", "openai/clip-vit-large-patch14-336", "MIT (CLIP)", "pytorch_model.bin"
    ),
    "dinov3_small": Folder(
        "dinov3-vits16-pretrain-lvd1689m", "facebook/dinov3-vits16-pretrain-lvd1689m", "DINOv3 License"
    ),
    "dinov3_base": Folder(
        "dinov3-vitb16-pretrain-lvd1689m", "facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3 License"
    ),
    "dinov3_large": Folder(
        "dinov3-vitl16-pretrain-lvd1689m", "facebook/dinov3-vitl16-pretrain-lvd1689m", "DINOv3 License"
    ),
    "mae_large": Folder("vit-mae-large", "facebook/vit-mae-large", "Apache-2.0 (MAE)"),
    "siglip_base": Folder("siglip-base-patch16-224", "google/siglip-base-patch16-224", "Apache-2.0 (SigLIP)"),
    "dino_small": Folder("dino-vits16", "facebook/dino-vits16", "Apache-2.0 (DINO)", "pytorch_model.bin"),
    "dino_small_8": Folder("dino-vits8", "facebook/dino-vits8", "Apache-2.0 (DINO)"),
}


def locate(name: str, weights: Mapping[str, str]) -> Path | None:
    """The file, or the folder, of a known name, or None.

    That is the recipe's `weights.<name>`, else what $TESSERA_WEIGHTS holds, else the hub's cache; nothing is fetched. A
    recipe may name a model of the hub for a folder. Raises ValueError for an unknown name, and for a stated path that
    is not there.
    """
    for given in (name, *weights):
        if given not in KNOWN:
            raise ValueError(f"weights.{given}: there are no weights of this name; there are: {', '.join(KNOWN)}")
    known = KNOWN[name]
    if given := hub_id(name, weights):
        path = replace(known, hub_id=given).cached()
        return path if path is not None and known.is_at(path) else None
    if name in weights:
        path = given_path(weights[name])
        if not known.is_at(path):
            what = f"folder {path} with {' and '.join(OF_A_FOLDER)}" if isinstance(known, Folder) else f"file {path}"
            raise ValueError(f"weights.{name}: there is no {what}; {remedy(name)}")
        return path
    return next((path for path in candidates(name) if known.is_at(path)), None)


def hub_id(name: str, weights: Mapping[str, str]) -> str | None:
    """The model of the hub that the recipe states for a folder, None where it states none or a path."""
    given = weights.get(name, "")
    if isinstance(KNOWN[name], Folder) and may_be_hub_id(given):
        return given
    return None


def expect(name: str, weights: Mapping[str, str]) -> Path | None:
    """As `locate`, but what is missing is a ValueError; None only for a model of the hub, which `require` fetches."""
    path = locate(name, weights)
    if path is None and hub_id(name, weights) is None:
        raise ValueError(f"the weights {name} are not on this machine; {remedy(name)}")
    return path


def require(name: str, weights: Mapping[str, str]) -> Path:
    """As `expect`, with what is to be fetched; ValueError for a file whose content is not the published one too."""
    path = expect(name, weights) or fetch(hub_id(name, weights), f"weights.{name}", KNOWN[name])
    if isinstance(KNOWN[name], File):
        verify(name, path)
    return path


def fetch(given: str, where: str, known: Folder) -> Path:
    """The folder of a model of the hub in its cache, fetched if it is not there; ValueError where it cannot be.

    `where` is the place in the recipe that names the model.
    """
    try:
        folder = Path(snapshot_download(given, allow_patterns=[*OF_A_FOLDER, OPTIONAL]))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingError(where, f": {given} is no folder here, and from the hub: {reason}") from None
    if not known.is_at(folder):
        raise SettingError(where, f": {given} has not {' and '.join(OF_A_FOLDER)}; {known.instruction}")
    return folder


def locate_model(given: str, weights: Mapping[str, str], where: str) -> Path | None:
    """The folder of the vision model that `given` names: known weights, a folder here, or a model of the hub.

    That of known weights is looked for wherever they may be. None only for a model of the hub which is not here yet.
    ValueError, naming the place `where` in the recipe, for anything else.
    """
    if isinstance(KNOWN.get(given), Folder):
        return expect(given, weights)
    if (path := given_path(given)).is_dir():
        return path
    for name, known in KNOWN.items():
        if isinstance(known, Folder) and known.hub_id == given and (path := locate(name, weights)):
            return path
    if not may_be_hub_id(given):
        known = ", ".join(name for name, one in KNOWN.items() if isinstance(one, Folder))
        raise SettingError(where, f": {given!r} is no folder here, no model of the hub, and none of {known}")
    path = Folder(given, given, "").cached()
    return path if path is not None and Folder(given, given, "").is_at(path) else None


def require_model(given: str, weights: Mapping[str, str], where: str) -> Path:
    """As `locate_model`, with what is to be fetched."""
    if isinstance(KNOWN.get(given), Folder):
        return require(given, weights)
    known = (one for one in KNOWN.values() if isinstance(one, Folder) and one.hub_id == given)
    return locate_model(given, weights, where) or fetch(given, where, next(known, Folder(given, given, "")))


def verify(name: str, path: Path) -> None:
    """Raise ValueError unless the file at `path` has the published sha256."""
    sha256 = digest(path)
    if not sha256.startswith(KNOWN[name].sha256):
        raise ValueError(f"{path} is not the published {name} (its sha256 is {sha256}); {remedy(name)}")


def candidates(name: str) -> list[Path]:
    """Where weights that no recipe states are looked for, in order."""
    known, folder = KNOWN[name], os.environ.get("TESSERA_WEIGHTS")
    paths = [given_path(folder) / known.name if folder else None, known.cached()]
    return [path for path in paths if path is not None]


def remedy(name: str) -> str:
    """How to have weights of a known name on this machine."""
    what = "FILE" if isinstance(KNOWN[name], File) else "FOLDER"
    return f"{KNOWN[name].instruction}, or set weights.{name}={what}"


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _read(stream)


def _read(stream) -> str:
    """`hashlib.file_digest` came with Python 3.11."""
    sha256 = hashlib.sha256()
    while block := stream.read(1 << 20):
        sha256.update(block)
    return sha256.hexdigest()


def table() -> str:
    """A line for all that is known: where it is, or how to get it."""
    rows, wide = [], max(map(len, KNOWN)) + 2
    for name, known in KNOWN.items():
        path = locate(name, {})
        rows.append(f"{name:<{wide}}{path} ({known.licence})" if path else f"{name:<{wide}}missing: {remedy(name)}")
    return "\n".join(rows)
