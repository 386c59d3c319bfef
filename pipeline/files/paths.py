"""Paths that people give: what lies on this machine, what may lie on the hub, and text without where things lay."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
RUNS = Path("runs")
# A directory: how it begins (at the root, at a home, at a drive or here), and all up to its last separator.
BEGINS = r"(?:~[\w.-]*|[A-Za-z]:|\.\.?)?[/\\](?=[^\s/\\])"
DIRECTORY = re.compile(rf"(?<![\w.:/\\~<-]){BEGINS}(?:[^\s'\"<>|,;)\]}}/\\]+[/\\])*")


def given_path(given: str | Path) -> Path:
    """The path with `~` as the home folder it stands for; `~name` of nobody stays as it is, which is not there.

    ValueError with one line where nothing can have this path, and where this machine does not let it be looked at.
    """
    try:
        path = Path(given).expanduser()
    except RuntimeError:  # no such user
        path = Path(given)
    try:
        path.exists()
    except (OSError, ValueError) as error:
        shown = str(given) if len(str(given)) <= 80 else f"{str(given)[:80]}..."
        raise ValueError(f"{shown!r} is neither a folder nor a file: {getattr(error, 'strerror', error)}") from None
    return path


def is_there(path: Path) -> bool:
    """Whether a file or folder is there; a name that none can have is not."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long; holds a NUL
        return False


def may_be_hub_id(given: str | Path) -> bool:
    """Whether `given` may be the name of something on the hub, owner/name.

    What is here is not, nor what names something in a folder that is here: that is a path with a slip in it.
    """
    owner = Path(str(given).partition("/")[0])
    here = is_there(Path(given)) or is_there(owner) or owner == RUNS
    return bool(HUB_ID.fullmatch(str(given))) and not here


def without_paths(value: Any) -> Any:
    """`value` with no text, however deep, telling where something lay on this machine: names of files alone.

    Paths below runs/ and names of the hub stay. Names of classes (`id2label`) are no paths, and stay too.
    """
    if isinstance(value, Mapping):
        return {name: entry if name == "id2label" else without_paths(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(map(without_paths, value))
    return _without_path(value) if isinstance(value, str) else value


def command_typed(words: Sequence[str]) -> str:
    """The words of a command line without where things lie: of a setting with a path in it, the name alone."""
    return " ".join(map(_without_setting, words))


def _without_setting(word: str) -> str:
    name, equals, value = word.partition("=")
    if equals and any(mark in value for mark in "/\\~"):
        return f"{name}=..."
    return Path(word).name if any(mark in word for mark in "/\\~") else word


def _without_path(text: str) -> str:
    path = Path(text)
    if path.parts[:1] == RUNS.parts and ".." not in path.parts:
        return text
    outside = text.startswith((".", "/", "~")) or not HUB_ID.fullmatch(text) or is_there(path)
    if len(path.parts) > 1 and outside and is_there(given_path(text)):
        return "home" if path.resolve() == Path.home() else path.resolve().name
    return DIRECTORY.sub("", text)
