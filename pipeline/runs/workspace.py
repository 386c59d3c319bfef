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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipeline.files.checksums import (
    NOTE,
    SIGNATURE,
    check_content,
    check_sizes,
    read_signed,
    signature,
    write_checksums,
    write_signed,
)
from pipeline.files.paths import command_typed
from pipeline.files.writing import entries, read_json, remove, remove_folder, replace_folder, write_json, write_text
from pipeline.program import command_line
from pipeline.runs.lock import LOCK, hold
from pipeline.runs.processes import on_main
from pipeline.runs.sharding import Sharding

OWNER = "recipe.yaml"
HASH_LINE = "# sha256 of what follows: "
VERSIONS = ("torch", "diffusers", "accelerate", "transformers", "datasets", "numpy")


class Workspace:
    """`root` is runs/<name>. Only the main process names artefacts; all processes write to one draft."""

    def __init__(self, root: Path, accelerator: Accelerator, sharding: Sharding | None = None):
        self.root, self.accelerator = root, accelerator
        self.sharding = sharding if accelerator.num_processes > 1 else None  # of the players of trainings
        self.claimed: str | None = None  # recipe.yaml as it is to be, while this command has the run

    def say(self, line: str) -> None:
        """Print a line, once whatever the number of processes."""
        if self.accelerator.is_main_process:
            print(line)

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
            if name not in notes and (self.root / name / NOTE).exists():
                note = read_note(self.root / name)
                notes |= self.history(note.get("reads", []))  # what lies beside the line, such as a card, reads none
                notes[name] = note
        return notes

    @contextlib.contextmanager
    def claim(self, recipe: str, settings: str) -> Iterator[None]:
        """Have the folder for this recipe and this command alone while the block runs.

        recipe.yaml is written where there is none, and then with every artefact, so that it never states settings that
        nothing was made with.
        Raises ValueError when it is another recipe's, or not a run at all, or in use by another command.
        """
        with contextlib.ExitStack() as held:

            def take() -> None:
                refuse_other(self.root, recipe)
                make_run(self.root)
                held.enter_context(hold(self.root / LOCK, str(self.root)))
                if owner_of(self.root) is None:
                    write_text(self.root / OWNER, self.claimed)

            self.claimed = recipe_text(recipe, settings)
            held.callback(setattr, self, "claimed", None)
            self.on_main(take)
            yield

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Be the only command that makes the artefact `name`, which lies beside the line, while the block runs."""
        with contextlib.ExitStack() as held:

            def take() -> None:
                make_run(self.root)
                held.enter_context(hold(self.root / f"{LOCK}-{name}", str(self.root / name)))

            self.on_main(take)
            yield

    def on_main(self, do: Callable[[], object]) -> None:
        """Have the main process do something, and the others wait; where it fails there, they end, too."""
        on_main(self.accelerator, do)

    def current(self, name: str, because: str) -> bool:
        """Whether the artefact is there and was made from the same; ValueError where a file of it has lost its size."""
        final, draft = self.root / name, self.draft(name, because)
        # a complete draft was stopped before it had its name
        self.on_main(lambda: self._finish(draft, final) if is_complete(draft) else None)
        if not (final / NOTE).exists() or read_note(final).get("hash") != because:
            return False
        check_sizes(final, remedy(final))
        return True

    def verify(self, name: str) -> None:
        """ValueError that names the first file of an artefact which is not what was written."""
        self.on_main(lambda: check_content(self.artefact(name), remedy(self.root / name)))

    @contextlib.contextmanager
    def publish(self, name: str, because: str, **provenance: Any) -> Iterator[Path]:
        """A draft folder, named by its cause so that only the same work continues in it; renamed once complete.

        The drafts of other causes go with it, but an unfinished training that can be resumed, which a line names.
        """
        draft, started = self.draft(name, because), time.monotonic()
        if self.accelerator.is_main_process:
            draft.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        try:
            yield draft
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk has its own error
                if self.accelerator.is_main_process:
                    _add_seconds(draft, time.monotonic() - started)
            raise
        self.accelerator.wait_for_everyone()

        def finish() -> None:
            note = {"hash": because, "seconds": round(_add_seconds(draft, time.monotonic() - started), 2)} | provenance
            if self.claimed:  # what the newest artefact was made with
                write_text(self.root / OWNER, self.claimed)
            write_signed(draft / NOTE, note | surroundings(self.accelerator))
            self._finish(draft, self.root / name)

        self.on_main(finish)

    def draft(self, name: str, because: str) -> Path:
        """Where an artefact of this cause is made."""
        return self.root / f".{name}-{because}"

    def _finish(self, draft: Path, final: Path) -> None:
        """Give a draft that has its note its name. Where this is stopped, `current` does it again."""
        for folder in list(draft.rglob("checkpoints")):
            remove_folder(folder)
        for hidden in [path for path in entries(draft) if path.name.startswith(".")]:
            # what was stopped while it was written or removed, and the seconds
            remove(hidden) if hidden.is_dir() else hidden.unlink(missing_ok=True)
        write_checksums(draft)
        replace_folder(draft, final)
        for other in final.parent.glob(f".{final.name}-*"):
            if any(other.rglob("checkpoints/step_*")):
                print(f"{other} holds an unfinished training of other settings or images; delete it if unwanted")
            else:
                shutil.rmtree(other)


def make_run(root: Path) -> None:
    """The folder of a run; ValueError where it cannot be made."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{root} cannot be made: {error.strerror}; state another name=..., or move it away") from None


def owner_of(root: Path) -> str | None:
    """The recipe whose run this is; None where there is none yet, or the file that says so was never written whole."""
    lines = (root / OWNER).read_text().splitlines() if (root / OWNER).is_file() else []
    return lines[0].removeprefix("# ") if lines else None


def recipe_text(recipe: str, settings: str) -> str:
    """What a run's recipe.yaml holds: whose run it is, the hash of the settings, and the settings."""
    return f"# {recipe}\n{HASH_LINE}{signature(settings)}\n{settings}"


def check_recipe_file(root: Path) -> None:
    """ValueError where a run's recipe.yaml is not what was written."""
    file = root / OWNER
    first, second, settings = (file.read_text(errors="replace").split("\n", 2) + ["", "", ""])[:3]
    if not first or second.startswith(HASH_LINE) and second != HASH_LINE + signature(settings):
        raise ValueError(f"{file} is damaged: it is not what was written; if you changed it, delete its second line")


def refuse_other(root: Path, recipe: str) -> None:
    """ValueError when a folder is another recipe's, or not a run at all."""
    owner = owner_of(root)
    if owner not in (None, recipe):
        raise ValueError(f"{root} holds a run of {owner}, not of {recipe}; state another name=...")
    if not (root / OWNER).exists() and root.is_dir() and any(not path.name.startswith(LOCK) for path in root.iterdir()):
        raise ValueError(f"{root} is there and is not a run; state another name=... or move it away")


def is_complete(draft: Path) -> bool:
    """Whether all in a draft is written, so that it only lacks its name."""
    try:
        return (draft / NOTE).is_file() and bool(read_note(draft))
    except ValueError:  # it is written again at the end of the same work
        return False


def read_note(folder: Path) -> dict[str, Any]:
    """What an artefact was made from; ValueError that says what to delete where its note is damaged."""
    try:
        note = read_json(folder / NOTE)
        return read_signed(folder / NOTE) if SIGNATURE in note else note
    except (ValueError, TypeError) as error:
        raise ValueError(f"{error}; {remedy(folder)}") from None


def read_values(artefact: Path, name: str) -> Any:
    """A JSON file of a finished artefact; None where it has none, ValueError where it is not what was written."""
    if not (artefact / name).is_file():
        return None
    check_content(artefact, remedy(artefact), lambda other: other == name)
    return read_json(artefact / name)


def remedy(artefact: Path) -> str:
    return f"delete {artefact}, and it is made again by: {command_line('all', 'RECIPE')}"


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
    earlier = read_json(file) if file.exists() else 0.0
    write_json(file, earlier + seconds)
    return earlier + seconds
