"""Settings as they are typed on a command line: text, which the type of the setting turns into a value."""

import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from pipeline.validation import at

WHOLE = re.compile(r"[+-]?\d+(_\d+)*")
DECIMAL = re.compile(r"[+-]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)([eE][+-]?\d+)?")
WORDS = {"null": None, "~": None, "": None, ".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
WORDS |= dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")}
NULL = "null"
UNIONS = (Union, types.UnionType)


@dataclass(frozen=True)
class Written:
    """A text whose type is not known yet; `removes` where it is null and stands over an entry that is there."""

    text: str
    removes: bool = False

    @property
    def is_null(self) -> bool:
        """Whether it is null for a setting that is no text."""
        return WORDS.get(self.text.strip().lower(), 0) is None

    @property
    def opens(self) -> bool:
        """Whether it begins as a mapping or a list does."""
        return self.text.lstrip().startswith(("{", "["))

    def structure(self) -> Any:
        """A mapping or list of such texts, in YAML's flow style; a quoted text without its quotes; else itself.

        ValueError with one line where braces, brackets or quotes are begun and do not end well.
        """
        text = self.text.strip()
        if not text.startswith(("{", "[", '"', "'")):
            return self
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise ValueError(f"{text!r} cannot be read: {getattr(error, 'problem', None) or error}") from None
        if node.end_mark.index < len(text):
            raise ValueError(f"{text!r} cannot be read: {text[node.end_mark.index :].strip()!r} follows its end")
        return _content(node)

    def scalar(self) -> Any:
        """A number, true, false or null as YAML writes them (010 is ten); else the text."""
        text = self.text.strip()
        if WHOLE.fullmatch(text):
            return int(text)
        return float(text) if DECIMAL.fullmatch(text) else WORDS.get(text.lower(), text)


def _content(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {_name(name): _entry(_name(name), value) for name, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_content(entry) for entry in node.value]
    if node.tag not in TAGS:
        raise ValueError(f"the tag {node.tag} has no meaning here; leave it out")
    return Written(node.value) if node.style is None else node.value


def _name(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError("a mapping has a mapping or a list where a name belongs; write {name: value}")
    return node.value


def _entry(name: str, value: yaml.Node) -> Any:
    if isinstance(value, yaml.ScalarNode) and value.style is None and not value.value:
        example = name.replace(":", ": ", 1) if ":" in name else f"{name}: VALUE"
        raise ValueError(f"{name!r} has no value; write {{{example}}}")
    return _content(value)


def opened(value: Any) -> Any:
    """`value` with a written mapping or list read, where it is one; anything else as it is."""
    if not (isinstance(value, Written) and value.opens):
        return value
    try:
        return value.structure()
    except ValueError:
        return value  # a text such as `[a] b`, or a mistake; the type of the setting tells which


def holds_written(value: Any) -> bool:
    """Whether a text without a type is in `value`."""
    if isinstance(value, Mapping):
        return any(map(holds_written, value.values()))
    return any(map(holds_written, value)) if isinstance(value, (list, tuple)) else isinstance(value, Written)


def typed(value: Any, hint: Any) -> Any:
    """`value` with every written text in it as a setting of the type `hint` takes it.

    What may be a text is kept as it was written, but for a mapping or list where the type may be one too. Entries of a
    mapping of free names that `removes` takes away are left out. The entries of a record that name components (with
    `slot` in the field's metadata) stay as they are written. Nothing is checked: `components.conform` does that.
    ValueError with one line where a text cannot be read.
    """
    if not holds_written(value):
        return value
    hint = bare(hint)
    if isinstance(value, Written):
        value, hint = _settle(value, hint)
    if isinstance(value, Mapping):
        return _typed_mapping(value, _member(hint, _takes_mapping))
    if isinstance(value, (list, tuple)):
        inner = get_args(_member(hint, _takes_list))
        fixed = len(inner) == len(value) and Ellipsis not in inner
        return [typed(entry, inner[i] if fixed else inner[0] if inner else Any) for i, entry in enumerate(value)]
    return value


def _settle(value: Written, hint: Any) -> tuple[Any, Any]:
    """What a written text is under a type, its own entries still as written, and the member of a union it is of."""
    members = [hint] if get_origin(hint) not in UNIONS else list(map(bare, get_args(hint)))
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    content = opened(value)
    if isinstance(content, Mapping) and any(map(_takes_mapping, members)):
        return content, hint
    if isinstance(content, list) and any(map(_takes_list, members)):
        return content, hint
    if chosen := [choice for choice in choices if str(choice) == value.text]:
        return chosen[0], hint
    if type(None) in members and value.text in (NULL, ""):
        return None, hint
    if str in members or (choices and not {bool, int, float} & set(members)):
        return (value.text or None), hint  # an empty one is a file's null
    content = value.structure()
    return (content.scalar() if isinstance(content, Written) else content), Any


def _typed_mapping(value: Mapping[str, Any], hint: Any) -> dict[str, Any]:
    if is_dataclass(hint):
        hints, later = get_type_hints(hint), {f.name for f in fields(hint) if "slot" in f.metadata}
        return {name: e if name in later else _typed_at(name, e, hints.get(name, Any)) for name, e in value.items()}
    inner = get_args(hint)[1] if get_origin(hint) is dict else Any
    if inner is not Any:
        value = {name: entry for name, entry in value.items() if not (isinstance(entry, Written) and entry.removes)}
        value = {name: None if isinstance(e, Written) and e.text == NULL else e for name, e in value.items()}
    return {name: _typed_at(name, entry, inner) for name, entry in value.items()}


def _typed_at(name: str, value: Any, hint: Any) -> Any:
    with at(name):
        return typed(value, hint)


def _member(hint: Any, takes: Any) -> Any:
    """The member of a union that a value belongs to; a type that is no union itself."""
    return hint if get_origin(hint) not in UNIONS else next(filter(takes, map(bare, get_args(hint))), Any)


def bare(hint: Any) -> Any:
    """A type without what is annotated to it."""
    return bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _takes_mapping(hint: Any) -> bool:
    return hint in (dict, Any) or get_origin(hint) is dict or is_dataclass(hint)


def _takes_list(hint: Any) -> bool:
    return hint in (list, tuple, Any) or get_origin(hint) in (list, tuple)
