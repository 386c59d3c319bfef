"""One run's folder: a stage reads earlier artefacts by name and publishes its own whole, or not at all."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipeline.local_paths import command_typed
from pipeline.program import command_line
from pipeline.whole_files import read_json, replace_folder, write_json, write_text

NOTE = "made_from.json"
OWNER = "recipe.yaml"
VERSIONS = ("torch", "diffusers", "accelerate", "transformers", "datasets", "numpy")


class Workspace:
    """`root` is runs/<name>. Only the main process names artefacts; all processes write to one draft."""

    def __init__(self, root: Path, accelerator: Accelerator):
        self.root, self.accelerator = root, accelerator

    def artefact(self, name: str) -> Path:
        """A finished artefact; ValueError when there is none, since an unfinished one has no name."""
        path = self.root / name
        if not (path / NOTE).exists():
            raise ValueError(f"{path} has not been made yet; type: {command_line('all', 'RECIPE')}")
        return path

    def history(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The notes of these artefacts and of all that they were made from, each after what it reads.

        An artefact that is not there is left out.
        """
        notes: dict[str, dict[str, Any]] = {}
        for name in names:
            file = self.root / name / NOTE
            if name not in notes and file.exists():
                note = read_json(file)
                notes |= self.history(note.get("reads", []))  # what lies beside the line, such as a card, reads none
                notes[name] = note
        return notes

    def claim(self, recipe: str, settings: str) -> None:
        """Make the folder this recipe's own; ValueError when it is another recipe's, or not a run at all."""
        owner = self.root / OWNER
        if owner.exists():
            other = owner.read_text().splitlines()[0].removeprefix("# ")
            if other != recipe:
                raise ValueError(f"{self.root} holds a run of {other}, not of {recipe}; state another name=...")
        elif self.root.exists() and any(self.root.iterdir()):
            raise ValueError(f"{self.root} is there and is not a run; state another name=... or move it away")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.root.mkdir(parents=True, exist_ok=True)
            write_text(owner, f"# {recipe}\n{settings}")
        self.accelerator.wait_for_everyone()

    def current(self, name: str, because: str) -> bool:
        """Whether the artefact is there and was made from the same."""
        note, draft = self.root / name / NOTE, self._draft(name, because)
        if self.accelerator.is_main_process and (draft / NOTE).exists():
            replace_folder(draft, self.root / name)  # complete, but stopped before it had its name
        self.accelerator.wait_for_everyone()
        return note.exists() and read_json(note)["hash"] == because

    @contextlib.contextmanager
    def publish(self, name: str, because: str, **provenance: Any) -> Iterator[Path]:
        """A draft folder, named by its cause so that only the same work continues in it; renamed once complete."""
        draft, started = self._draft(name, because), time.time()
        if self.accelerator.is_main_process:
            draft.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        try:
            yield draft
        except BaseException:
            if self.accelerator.is_main_process:
                _add_seconds(draft, time.time() - started)
            raise
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            note = {"hash": because, "seconds": round(_add_seconds(draft, time.time() - started), 2)} | provenance
            (draft / ".seconds").unlink()
            self._finish(draft, self.root / name, note | surroundings(self.accelerator))
        self.accelerator.wait_for_everyone()

    def _draft(self, name: str, because: str) -> Path:
        return self.root / f".{name}-{because}"

    def _finish(self, draft: Path, final: Path, note: dict[str, Any]) -> None:
        for folder in draft.rglob("checkpoints"):
            shutil.rmtree(folder)
        write_json(draft / NOTE, note)
        replace_folder(draft, final)
        for stale in final.parent.glob(f".{final.name}-*"):  # drafts of recipes that have changed since
            shutil.rmtree(stale)


def fingerprint(*parts: Any) -> str:
    """A hash of what a result depends on; settings marked `only_speed` do not count."""
    return hashlib.sha256(json.dumps(plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def plain(part: Any) -> Any:
    """Dataclasses, sequences and mappings as JSON values, without the fields that only change the speed."""
    if is_dataclass(part):
        return {f.name: plain(getattr(part, f.name)) for f in fields(part) if not f.metadata.get("only_speed")}
    if isinstance(part, dict):
        return {str(key): plain(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [plain(value) for value in part]
    return part


def surroundings(accelerator: Accelerator) -> dict[str, Any]:
    """Where and with what a result was made."""
    return {
        "command": command_typed(sys.argv),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision if accelerator.mixed_precision != "no" else "fp32",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of this checkout, with a + when files differ from it; None outside of a checkout."""
    root = Path(__file__).parents[2]
    run = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
    if shutil.which("git") is None or not (root / ".git").exists():  # installed in the checkout of something else
        return None
    result = subprocess.run(run, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None


def _add_seconds(draft: Path, seconds: float) -> float:
    """Add to the seconds that earlier tries at this draft took, and return the sum."""
    file = draft / ".seconds"
    total = seconds + (float(file.read_text()) if file.exists() else 0.0)
    write_text(file, str(total))
    return total
