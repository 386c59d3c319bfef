"""Weight files that cannot be bundled: where each is looked for, and what it must be."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class File:
    """A published file: `name` is what it is called in $TESSERA_WEIGHTS and in torch.hub's cache."""

    name: str
    source: str
    sha256: str
    licence: str


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
    "inception": File(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "Apache-2.0 (pytorch-fid)",
    ),
}


def locate(name: str, stated: Mapping[str, str]) -> Path | None:
    """The file of a known name: the recipe's `weights.<name>`, else $TESSERA_WEIGHTS, else the hub cache, or None.

    Raises ValueError for an unknown name, and for a stated path that is not there.
    """
    for given in (name, *stated):
        if given not in KNOWN:
            raise ValueError(f"weights.{given}: there is no weight file of this name; there are: {', '.join(KNOWN)}")
    if name in stated:
        path = Path(stated[name]).expanduser()
        if not path.is_file():
            raise ValueError(f"weights.{name}: there is no file {path}; {remedy(name)}")
        return path
    return next((path for path in places(name) if path.is_file()), None)


def require(name: str, stated: Mapping[str, str]) -> Path:
    """As `locate`, but a missing file, or one whose content is not the published one, is a ValueError."""
    path = locate(name, stated)
    if path is None:
        raise ValueError(f"the weights {name} are not on this machine; {remedy(name)}")
    verify(name, path)
    return path


def verify(name: str, path: Path) -> None:
    """Raise ValueError unless the file at `path` has the published sha256."""
    found = digest(path)
    if found != KNOWN[name].sha256:
        raise ValueError(f"{path} is not the published {name} (its sha256 is {found}); {remedy(name)}")


def places(name: str) -> list[Path]:
    """Where a file that no recipe states is looked for, in order."""
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if own := os.environ.get("TESSERA_WEIGHTS"):
        folders.insert(0, Path(own).expanduser())
    return [folder / KNOWN[name].name for folder in folders]


def remedy(name: str) -> str:
    known = KNOWN[name]
    return (
        f"put {known.name} from {known.source} (sha256 {known.sha256}) into $TESSERA_WEIGHTS, or set weights.{name}"
        " to its path"
    )


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _read(stream)


def _read(stream) -> str:
    """`hashlib.file_digest` came with Python 3.11."""
    found = hashlib.sha256()
    while block := stream.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def table() -> str:
    """One line a known file: where it is, or what to fetch from where."""
    rows = []
    for name, known in KNOWN.items():
        path = locate(name, {})
        rows.append(f"{name:<12}{path} ({known.licence})" if path else f"{name:<12}missing: {remedy(name)}")
    return "\n".join(rows)
