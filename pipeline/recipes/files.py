"""Recipes as files: finding them, what they include, and changes of single values stated on the command line."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.files.paths import is_there
from pipeline.recipes.arithmetic import StagePrecision
from pipeline.validation import suggestion
from pipeline.written import Written, opened

PACKAGE = Path(__file__).parents[1]
# In a checkout configs/ lies beside the package; a wheel holds it inside.
CONFIGS = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SUFFIXES = (".yaml", ".yml")


def locate(name: str) -> Path:
    """The file of a recipe given as a path or as a name in configs/."""
    for path in (Path(name), CONFIGS / f"{name}.yaml"):
        if _is_file(path):
            return path
    raise ValueError(f"there is no recipe {name!r}{suggestion(name, names())}")


def is_recipe(name: str) -> bool:
    """Whether `name` is meant as a recipe: a YAML file, or a name in configs/; a pipeline's folder or hub id is not."""
    if name.endswith(SUFFIXES) or _is_file(CONFIGS / f"{name}.yaml"):
        return True
    return not ("/" in name or name.startswith(("~", ".")) or is_there(Path(name)))


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


def read(path: Path, known: Sequence[str] = (), above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe file as a mapping, with what it includes merged beneath it.

    ValueError with one line, which quotes nothing of the file, where it is no recipe: an included one has some of the
    settings `known`, where these are given.
    """
    path = path.resolve()
    if path in above:
        raise ValueError(f"{path.name} includes itself by way of {' -> '.join(p.name for p in (*above, path))}")
    values = _read_settings(path)
    if above and known and not set(values) & {*known, "include"}:
        raise ValueError(f"{above[-1].name} includes {path}, which is no recipe: it has none of a recipe's settings")
    merged: dict[str, Any] = {}
    included = values.pop("include", None) or []
    for entry in included if isinstance(included, list) else [included]:
        merged = merge(merged, read(_included(entry, path), known, (*above, path)))
    return merge(merged, expand(spread(values)))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=LOADER)
        values = OmegaConf.to_container(OmegaConf.load(path)) if isinstance(root, yaml.MappingNode) else None
    except (OmegaConfBaseException, OSError, ValueError) as error:  # whose texts may quote the file
        reason = error.strerror if isinstance(error, OSError) else None
        raise ValueError(f"{path} cannot be read as a recipe{f': {reason}' if reason else ''}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{path} is not YAML{where}") from None
    if not isinstance(values, dict) or not all(str(name).isidentifier() for name in values):
        raise ValueError(f"{path} holds no settings; a recipe is a mapping of names")
    if place := _interpolated(values):
        raise ValueError(f"{path}: {place} refers to another value by ${{...}}, which recipes do not; write the value")
    return values


def _interpolated(value: Any, place: str = "") -> str | None:
    """The first place that a `${...}` is written in, or None."""
    if isinstance(value, str):
        return (place or "a value") if "${" in value else None
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    places = (_interpolated(entry, f"{place}.{name}" if place else str(name)) for name, entry in entries)
    return next(filter(None, places), None)


def _included(entry: Any, path: Path) -> Path:
    if not isinstance(entry, str):
        raise ValueError(f"{path.name} includes something that is no text; name recipes, as include: [data/digits]")
    beside = [path.parent / entry] if entry.endswith(SUFFIXES) else []
    for candidate in (*beside, path.parent / f"{entry}.yaml", CONFIGS / f"{entry}.yaml"):
        if _is_file(candidate):
            return candidate
    if _is_file(path.parent / entry):
        raise ValueError(f"{path.name} includes {entry!r}, which is no recipe: a recipe's file ends in .yaml")
    raise ValueError(f"{path.name} includes {entry!r}, which is neither beside it nor in configs/")


SHORT_FORMS = {"guidance": "scale"}  # a section that may be given as the bare value of one of its entries


FOR_ALL = {"precision": [field.name for field in fields(StagePrecision)]}  # a bare value is that of all these entries


def spread(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe; a section that is given as the one value of all its entries has each of them."""
    opened_values = {key: opened(value) if key in FOR_ALL else value for key, value in values.items()}
    whole = {k for k, v in opened_values.items() if k in FOR_ALL and not isinstance(v, Mapping) and not _is_null(v)}
    return {key: dict.fromkeys(FOR_ALL[key], value) if key in whole else value for key, value in opened_values.items()}


def expand(values: Any) -> Any:
    """Short forms as the sections they stand for, so that either can be given over the other."""
    if not isinstance(values, Mapping):
        return values
    opened_values = {key: opened(value) if key in SHORT_FORMS else value for key, value in values.items()}
    bare = {k for k, v in opened_values.items() if k in SHORT_FORMS and not isinstance(v, Mapping) and not _is_null(v)}
    return {key: {SHORT_FORMS[key]: value} if key in bare else expand(value) for key, value in opened_values.items()}


def merge(below: Mapping[str, Any], above: Mapping[str, Any], by_kind: bool = True) -> dict[str, Any]:
    """`above` over `below`, key by key; `by_kind`: a node of another kind replaces the whole node.

    A null over an entry that is there is one that `removes` it.
    """
    if by_kind and "kind" in below and "kind" in above and _text(below["kind"]) != _text(above["kind"]):
        return dict(above)
    result = dict(below)
    for key, value in above.items():
        there = result.get(key)
        if isinstance(value, Mapping):
            there = opened(there)
        elif isinstance(there, Mapping):
            value = opened(value)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            result[key] = merge(there, value, by_kind)
        elif _is_null(value) and key in below:
            result[key] = Written(value.text if isinstance(value, Written) else "", removes=True)
        else:
            result[key] = value
    return result


def parse_settings(
    words: Iterable[str], whole: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
) -> dict[str, Any]:
    """Settings `a.b=value` as one nested mapping, to be merged over others or given a structure.

    The values are texts still: the type of a setting decides what they are. In which order the settings are given does
    not matter, but for one that is given twice, and that one value for a `whole` section, as `spread` has them, leaves
    what is stated of its entries. ValueError for what is no setting.
    """
    parsed = [_parse(word) for word in words]
    values: dict[str, Any] = {}
    for each in [*(one for one in parsed if whole(one) != one), *(one for one in parsed if whole(one) == one)]:
        values = merge(values, whole(each), by_kind=False)
    return values


def is_setting(word: str) -> bool:
    """Whether a word of the command line is meant as key=value."""
    key, equals, _ = word.partition("=")
    return bool(equals) and all(part.isidentifier() for part in key.split("."))


def _parse(word: str) -> dict[str, Any]:
    key, equals, text = word.partition("=")
    if word.startswith("-") or not equals:
        raise ValueError(f"{word!r} is not a setting; write key=value, for example generator.loop.steps=2000")
    if not text:
        raise ValueError(f"{key} has no value; write {key}=null if none is meant")
    if not is_setting(word):
        raise ValueError(f"{key!r} is not a key; give a whole list as key=[1,2,2]")
    if "${" in text:
        raise ValueError(f"{key}: {text!r} refers to another value by ${{...}}, which settings do not; write the value")
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise ValueError(
            f"{key}: the bytes of {shown} are no UTF-8, and a recipe is text; give another name, or a link"
        )
    value: Any = Written(text)
    for part in reversed(key.split(".")):
        value = {part: value}
    return expand(value)


def leave_out_known(values: Any, fields: Collection[str], within: str = "") -> Any:
    """`values` without the nulls in the mappings `fields`, of names that a recipe chooses, whose names recipes know.

    They would leave out what is not there, as one does to be sure; a null of an unknown name stays, and is a mistake.
    """
    values = opened(values) if within in fields else values
    if not isinstance(values, Mapping):
        return values
    kept = {
        name: leave_out_known(entry, fields, str(name))
        for name, entry in values.items()
        if not (within in fields and _is_null(entry) and name in names_within(within))
    }
    return kept


@cache
def names_within(field: str) -> frozenset[str]:
    """The names that the recipes in configs/, and what they include, have in their mappings `field`."""
    recipes = (yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER) for path in CONFIGS.rglob("*.yaml"))
    return frozenset(name for values in recipes for name in _names_within(values, field))


def _names_within(value: Any, field: str) -> Iterator[str]:
    for name, entry in value.items() if isinstance(value, dict) else ():
        yield from (map(str, entry) if name == field and isinstance(entry, dict) else ())
        yield from _names_within(entry, field)


def _text(value: Any) -> Any:
    return value.text if isinstance(value, Written) else value


def _is_null(value: Any) -> bool:
    return value is None or isinstance(value, Written) and value.is_null


def _is_file(path: Path) -> bool:
    """Whether a file is there; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long; holds a NUL
        return False
