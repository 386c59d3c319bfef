"""Recipes name components; a component's file name is its key and its constructor is its schema."""

import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pipeline.ranges import type_hints
from pipeline.validation import PLACE, SettingError, at, check_numbers, suggestion

if TYPE_CHECKING:
    from diffusers import ConfigMixin

from pipeline.written import holds_written, opened, typed

Node = dict[str, Any]  # {kind: <file name>, **constructor arguments}

SLOTS = (
    "datasets",
    "text_encoders",
    "tokenizers",
    "bottlenecks",
    "networks",
    "objectives",
    *("similarities", "transplants"),
    "solvers",
    "losses",
    "critics",
    "adversarial",
    "optimizers",
    *("perturbations", "teachers"),
    "metrics",
)
NESTED = {slot.removesuffix("s"): slot for slot in SLOTS}  # an argument named like a slot
NESTED |= {"loss": "losses", "head": "objectives", "similarity": "similarities"}


def kinds(slot: str) -> list[str]:
    """Every component a recipe may name in this slot, read off the folder."""
    package = importlib.import_module(f"pipeline.{slot}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base")


def find(slot: str, kind: str) -> type:
    """`find("networks", "diffusion_transformer")` is the class DiffusionTransformer of that file."""
    if kind not in kinds(slot):
        raise SettingError(slot, f": there is no kind {kind!r}{suggestion(str(kind), kinds(slot))}")
    module = importlib.import_module(f"pipeline.{slot}.{kind}")
    classes = {name.lower(): value for name, value in vars(module).items() if inspect.isclass(value)}
    return classes[kind.replace("_", "")]


class Arguments(Mapping[str, Any]):
    """The arguments of a component, read-only, by name or as attributes: what is given, and the constructor's defaults.

    Class methods that answer without building take them, so that no default is written twice. A derived argument that
    no earlier stage has determined yet is absent: reading it is an AttributeError. `arguments | {name: value}` is a
    copy with more of them.
    """

    def __init__(self, values: Mapping[str, Any]):
        vars(self)["_values"] = dict(values)

    @classmethod
    def complete(cls, component: type, values: Mapping[str, Any]) -> "Arguments":
        """`values` as they are and, for the rest, the defaults of the constructor of `component`."""
        defaults = {
            n: p.default
            for n, p in constructor_parameters(component).items()
            if p.default is not inspect.Parameter.empty
        }
        return cls({**defaults, **values})

    @classmethod
    def from_config(cls, component: "ConfigMixin") -> "Arguments":
        """The arguments that `component` was constructed from, as its config holds them."""
        return cls({name: value for name, value in component.config.items() if not name.startswith("_")})

    def __getattr__(self, name: str) -> Any:
        try:
            return vars(self)["_values"][name]
        except KeyError:
            raise AttributeError(f"no argument {name!r} is given or known yet; there are: {', '.join(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"arguments are read-only; {name!r} cannot be set")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __or__(self, others: Mapping[str, Any]) -> "Arguments":
        return Arguments({**self._values, **others})

    def __repr__(self) -> str:
        return f"Arguments({self._values})"


def classes_of(slot: str) -> list[type]:
    """The classes of all kinds of a slot."""
    return [find(slot, kind) for kind in kinds(slot)]


def check(slot: str, node: Node, derived: tuple[str, ...] = (), where: str | None = None) -> tuple[type, Arguments]:
    """The class and the typed arguments of a node, defaults filled in, without constructing it.

    `derived` names arguments that an earlier stage determines: a recipe that states one is refused.
    Raises ValueError with one line that names the place (`where`) and the remedy.
    """
    cls, values = conform_node(slot, node, derived, where or slot)
    return cls, Arguments.complete(cls, values)


def choose(
    choices: Mapping[str, type], node: Node, derived: tuple[str, ...] = (), where: str = ""
) -> tuple[type, Arguments]:
    """As `check`, for an argument that names one of a few classes and not a file of a slot."""
    if not isinstance(node, Mapping) or node.get("kind") not in choices:
        given = node.get("kind") if isinstance(node, Mapping) else node
        raise SettingError(where, f" needs a kind, one of: {', '.join(choices)}; it has {given!r}")
    cls = choices[node["kind"]]
    return cls, Arguments.complete(cls, conform_arguments(cls, node, derived, where))


def conform_node(slot: str, node: Node, derived: tuple[str, ...], where: str) -> tuple[type, dict[str, Any]]:
    """The class of a node and the arguments that it states, typed; ValueError as in `check`."""
    if not isinstance(node, Mapping) or not node.get("kind"):
        raise SettingError(where, f" needs a kind, one of: {', '.join(kinds(slot))}")
    cls = find_at(slot, node["kind"], where)
    return cls, conform_arguments(cls, node, derived, where)


def conform_arguments(cls: type, node: Node, derived: tuple[str, ...], where: str) -> dict[str, Any]:
    """The arguments that a node states for the constructor of `cls`, typed; ValueError as in `check`."""
    arguments = {name: value for name, value in node.items() if name != "kind"}
    hints = type_hints(cls.__init__)
    if refused := sorted(set(derived) & set(arguments)):
        raise SettingError(f"{where}.{refused[0]}", " is determined by an earlier stage; take it out of the recipe")
    free = {name: parameter for name, parameter in constructor_parameters(cls).items() if name not in derived}
    for name in arguments:
        if name not in free:
            raise SettingError(where, f": {node['kind']} has no argument {name!r}{suggestion(name, list(free))}")
    for name, parameter in free.items():
        if name not in arguments and parameter.default is inspect.Parameter.empty:
            raise SettingError(f"{where}.{name}", f" is missing; {node['kind']} needs a value for it")
    return {name: conform_argument(name, value, hints[name], f"{where}.{name}") for name, value in arguments.items()}


def conform_argument(name: str, value: Any, hint: Any, where: str) -> Any:
    """As `conform`; where the argument takes a mapping and is named like a slot, it is a node of that slot."""
    if name not in NESTED or not isinstance(value, Mapping) or not takes_mapping(hint):
        return conform(value, hint, where)
    _, values = conform_node(NESTED[name], dict(value), (), where)
    return {"kind": value["kind"], **values}


def read_nodes(slot: str, value: Any, hint: Any) -> Any:
    """What a recipe's field of the type `hint` names of a slot: a node, or nodes by name; the texts in it typed.

    Text of a command line becomes what the constructor of the node's kind takes, before anything else is checked.
    """
    value, either = opened(value), dict[str, Node] in get_args(hint)  # a node, or nodes by name
    if "kind" in value if either and isinstance(value, Mapping) else get_origin(hint) is not dict or hint == Node:
        return read_node(slot, value)
    if not isinstance(value, Mapping):
        return value
    return {name: read_node(slot, node) if holds_written(opened(node)) else node for name, node in value.items()}


def read_node(slot: str, node: Any) -> Any:
    """A node with the texts in it as its constructor takes them; what is no node, as it is."""
    node = opened(node)
    if not isinstance(node, Mapping) or not holds_written(node):
        return node
    kind = typed(node.get("kind"), str)
    return read_arguments(find(slot, kind) if kind in kinds(slot) else None, node)


def read_arguments(cls: type | None, node: Mapping[str, Any]) -> dict[str, Any]:
    """As `read_node`, for a node of the class `cls`, or of an unknown one."""
    hints = type_hints(cls.__init__) if cls else {}
    read: dict[str, Any] = {}
    for name, value in node.items():
        hint = str if name == "kind" else hints.get(name, Any)
        inner = opened(value)
        with at(name):
            if not isinstance(inner, Mapping):
                read[name] = typed(value, hint)
            elif name in NESTED and takes_mapping(hint):
                read[name] = read_node(NESTED[name], inner)
            elif of := getattr(cls, "choices", {}).get(name):
                read[name] = read_arguments(of.get(typed(inner.get("kind"), str)), inner)
            else:
                read[name] = typed(value, hint)
    return read


def takes_mapping(hint: Any) -> bool:
    """Whether an argument of this type may be a mapping."""
    return dict in (hint, get_origin(hint)) or any(takes_mapping(inner) for inner in get_args(hint))


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Those of the constructor of `cls`, without `self`."""
    return {name: p for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"}


def build(slot: str, node: Node, **derived: Any) -> Any:
    """Construct a component from its recipe node and from what earlier stages determine.

    A derived value that the constructor does not take is not passed: a network without classes has no `num_classes`.
    """
    cls, values = conform_node(slot, node, tuple(derived), slot)
    return cls(**values, **{name: value for name, value in derived.items() if name in constructor_parameters(cls)})


def find_at(slot: str, kind: str, where: str) -> type:
    try:
        return find(slot, kind)
    except SettingError as error:
        raise SettingError(where, error.message) from None


def conform(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, or ValueError naming the place; recursive over dataclasses, lists and mappings.

    Texts of a command line are read as the type says; numbers of numpy and torch are taken as Python's.
    No number is nan, infinite or outside of the range that the type states (`pipeline.ranges`).
    """
    if holds_written(value):
        with at(where):
            value = typed(value, hint)
    if hint is Any:
        check_numbers(where, value)
        return value
    value = plain_value(value)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = conform(value, inner[0], where)
        for rule in inner[1:]:
            rule.check(where, value)
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, inner, where)
    if origin is Literal:
        if value in inner and not isinstance(value, bool):
            return value
        note = " (YAML reads no, off and false alike; put it in quotes)" if isinstance(value, bool) else ""
        raise SettingError(where, f": {value!r} is not one of {', '.join(map(str, inner))}{note}")
    if is_dataclass(hint):
        return structure(hint, value, where)
    if origin in (list, tuple):
        return _sequence(value, origin, inner, where)
    if origin is dict or hint is dict:
        if value is None:  # as a recipe empties what it includes
            return {}
        if not isinstance(value, Mapping):
            raise SettingError(where, f": {value!r} is not a mapping")
        of = inner[1] if inner else Any
        for name in value:
            if value[name] is None and of is not Any and type(None) not in get_args(of):
                space = f", with a space: {str(name).replace(':', ': ', 1)}" if ":" in str(name) else ""
                raise SettingError(f"{where}.{name}", f" is empty, and there is none to leave out; give a value{space}")
        return {str(k): conform(v, of, f"{where}.{k}") for k, v in value.items()}
    return _scalar(value, hint, where)


def plain_value(value: Any) -> Any:
    """Scalars and arrays of numpy and torch, and ranges, as Python's numbers and lists; anything else as it is."""
    if isinstance(value, range):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value


class ShortForm:
    """A record that a recipe may give as one bare value: that of its field `short`."""

    short: ClassVar[str]


def structure(cls: type, values: Any, where: str = "") -> Any:
    """A dataclass from a mapping: unknown keys, missing values and wrong types are one-line errors."""
    if issubclass(cls, ShortForm) and isinstance(values, (int, float, str)):
        values = {cls.short: values}
    if not isinstance(values, Mapping):
        raise SettingError(where, f": {values!r} is not a mapping of {', '.join(f.name for f in fields(cls))}")
    hints = type_hints(cls)
    known = [f.name for f in fields(cls)]
    dot = f"{where}." if where else ""
    for name in values:
        if name not in known:
            raise SettingError(f"{dot}{name}", f": there is no such setting{suggestion(str(name), known)}")
    for f in fields(cls):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise SettingError(f"{dot}{f.name}", f" is missing; state it in the recipe or as {PLACE}=VALUE")
    slots = {f.name: f.metadata["slot"] for f in fields(cls) if "slot" in f.metadata}
    typed_values = {}
    for name, value in values.items():
        if name in slots and holds_written(value):
            with at(f"{dot}{name}"):
                value = read_nodes(slots[name], value, hints[name])
        typed_values[name] = conform(value, hints[name], f"{dot}{name}")
    with at(where) if where else nullcontext():
        return cls(**typed_values)


def _one_of(value: Any, hints: tuple, where: str) -> Any:
    if value is None and type(None) in hints:
        return None
    errors = []
    for hint in hints:
        if hint is not type(None):
            try:
                return conform(value, hint, where)
            except SettingError as error:
                errors.append(error)
    raise max(errors, key=lambda error: len(error.place))  # that of the type which fits as far as an inner value


def _sequence(value: Any, origin: type, inner: tuple, where: str) -> Any:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise SettingError(where, f": {value!r} is not a list; write [{value}, ...]")
    fixed = origin is tuple and inner and inner[-1] is not Ellipsis
    if fixed and len(value) != len(inner):
        raise SettingError(where, f": {list(value)} has {len(value)} entries, not {len(inner)}")
    of = inner if fixed else (inner[:1] or (Any,)) * len(value)
    return origin(conform(v, h, f"{where}[{i}]") for i, (v, h) in enumerate(zip(value, of)))


def _scalar(value: Any, hint: type, where: str) -> Any:
    if hint in (int, float):
        check_numbers(where, value)
    if isinstance(value, float) and hint is int and value.is_integer():
        return int(value)  # 1e3 is a float in YAML
    if isinstance(value, int) and not isinstance(value, bool) and hint is float:
        return float(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    given = "empty" if value is None else repr(value)
    raise SettingError(where, f": {given} is not {names.get(hint, getattr(hint, '__name__', hint))}")
