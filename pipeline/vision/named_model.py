"""A model that a recipe names, whose weights a training begins with: where it is on this machine."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from pipeline.files.paths import given_path, may_be_hub_id
from pipeline.vision.weights import KNOWN, OF_A_FOLDER, Folder, locate, remedy

WEIGHTS = ("*.safetensors", "*.bin")  # of a model in the hub's cache


@dataclass(frozen=True)
class NamedModel:
    """A folder; with `hub` also a model of the hub, or the name of known weights."""

    given: str
    hub: bool = False
    config: str = OF_A_FOLDER[0]  # where its config lies in the hub's repository

    @property
    def folder(self) -> Path | None:
        """Where it is on this machine: here, in $TESSERA_WEIGHTS or in the hub's cache; nothing is fetched."""
        if (path := given_path(self.given)).is_dir():
            return path
        if not self.hub:
            return None
        if (name := self.known) and (path := locate(name, {})):
            return path
        if not may_be_hub_id(self.given):
            return None
        cached = try_to_load_from_cache(self.given, self.config)
        folder = Path(cached).parent if isinstance(cached, str) else None
        return folder if folder and any(one for kind in WEIGHTS for one in folder.glob(kind)) else None

    @property
    def known(self) -> str | None:
        """Its name among known weights."""
        folders = ((name, known.hub_id) for name, known in KNOWN.items() if isinstance(known, Folder))
        return next((name for name, hub_id in folders if self.given in (name, hub_id)), None)

    @property
    def missing(self) -> bool:
        """Whether it is neither here nor fetched from the hub."""
        return self.folder is None and not (self.hub and may_be_hub_id(self.given))

    def origin(self) -> str:
        """Where it is, in a line."""
        return f"{self.given}, {'missing' if self.missing else self.folder or 'to be fetched from the hub'}"

    def remedy(self) -> str:
        """What to say where it is missing."""
        if self.hub and self.known:
            return f"the weights {self.given} are not on this machine; {remedy(self.known)}"
        return (
            f"there is no folder {self.given} on this machine; train it or make it by python run.py import, or name"
            " another folder"
        )
