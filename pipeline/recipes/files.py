"""Recipes as files: finding them, what they include, and changes of single values stated on the command line."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.validation import suggestion

PACKAGE = Path(__file__).parents[1]
# In a checkout configs/ lies beside the package; a wheel holds it inside.
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())


def locate(name: str) -> Path:
    """The file of a recipe given as a path or as a name in configs/."""
    for path in (Path(name), CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    raise ValueError(f"there is no recipe {name!r}{suggestion(name, names())}")


def is_recipe(name: str) -> bool:
    """Whether `name` is meant as a recipe: a YAML file, or a name in configs/; a pipeline's folder or hub id is not."""
    return (
        name.endswith((".yaml", ".yml"))
        or (CONFIGS / f"{name}.yaml").is_file()
        or not (Path(name).is_dir() or "/" in name)
    )


def origin(name: str) -> str:
    """How a run's folder remembers its recipe: by the file's path, relative to the project where it can be."""
    path = locate(name).resolve()
    return str(path.relative_to(CONFIGS.parent)) if path.is_relative_to(CONFIGS.parent) else str(path)


def names() -> list[str]:
    """Recipes in configs/; fragments, which others include, lie in folders below it."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def catalogue() -> str:
    """Every recipe with the first sentence of its comment block, a line each."""
    wide = max(map(len, names())) + 2
    return "\n".join(f"{name:<{wide}}{headline(CONFIGS / f'{name}.yaml')}" for name in names())


def headline(path: Path) -> str:
    comment = " ".join(line.lstrip("# ").rstrip() for line in path.read_text().splitlines() if line.startswith("#"))
    return re.split(r"(?<=[.])\s", comment, maxsplit=1)[0]


def read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe file as a mapping, with what it includes merged beneath it."""
    path = path.resolve()
    if path in above:
        raise ValueError(f"{path.name} includes itself by way of {' -> '.join(p.name for p in (*above, path))}")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise ValueError(f"{path}: {first_line(error)}") from None
    except Exception as error:  # the YAML reader's own classes share no public base
        if type(error).__module__.partition(".")[0] != "yaml":
            raise
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} holds no settings; a recipe is a mapping")
    merged: dict[str, Any] = {}
    included = values.pop("include", None) or []
    for entry in [included] if isinstance(included, str) else included:
        merged = merge(merged, read(_included(entry, path), (*above, path)))
    return merge(merged, expand(values))


def _included(entry: str, path: Path) -> Path:
    for candidate in (path.parent / entry, path.parent / f"{entry}.yaml", CONFIGS / f"{entry}.yaml"):
        if candidate.is_file():
            return candidate
    raise ValueError(f"{path.name} includes {entry!r}, which is neither beside it nor in configs/")


SHORT_FORMS = {"guidance": "scale"}  # a section that may be given as the bare value of one of its entries


def expand(values: Any) -> Any:
    """Short forms as the sections they stand for, so that either can be given over the other."""
    if not isinstance(values, Mapping):
        return values
    bare = {key for key, value in values.items() if key in SHORT_FORMS and not isinstance(value, (Mapping, NoneType))}
    return {key: {SHORT_FORMS[key]: value} if key in bare else expand(value) for key, value in values.items()}


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, key by key; a node of another kind replaces the whole node."""
    if "kind" in below and "kind" in above and below["kind"] != above["kind"]:
        return dict(above)
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def parse(override: str) -> dict[str, Any]:
    """`a.b=value` as a nested mapping; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if override.startswith("-") or not equals:
        raise ValueError(f"{override!r} is not a setting; write key=value, for example generator.loop.steps=2000")
    if not text:
        raise ValueError(f"{key} has no value; write {key}=null if none is meant")
    if not all(part.isidentifier() for part in key.split(".")):
        raise ValueError(f"{key!r} is not a key; give a whole list as key=[1,2,2]")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=True)["value"]
    except Exception as error:
        raise ValueError(f"{key}: {text!r} cannot be read: {first_line(error)}") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return expand(value)


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
