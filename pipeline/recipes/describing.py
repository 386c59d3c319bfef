"""What a recipe can state, read off the code that checks it: its sections, and the kinds of every slot."""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.components import NESTED, find, kinds, takes_mapping
from pipeline.program import command_line
from pipeline.ranges import stated_ranges, type_hints
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.schema import Recipe
from pipeline.solvers.base import solvers_of
from pipeline.tokenizers.base import DERIVED_ARGUMENTS
from pipeline.validation import Range, suggestion

PLACES = {  # where a recipe names the kinds of a slot
    "datasets": "data.source",
    "text_encoders": "text.encoder",
    "tokenizers": "tokenizer.model",
    "bottlenecks": "tokenizer.model.bottleneck",
    "losses": "tokenizer.phases.NAME.losses.NAME and generator.losses.NAME",
    "critics": "tokenizer.phases.NAME.adversary.critic",
    "adversarial": "tokenizer.phases.NAME.adversary.loss",
    "optimizers": "tokenizer.phases.NAME.loop.optimizer, generator.loop.optimizer",
    "perturbations": "tokenizer.phases.NAME.perturbation",
    "networks": "generator.network",
    "objectives": "generator.objective",
    "transplants": "generator.start.transplant",
    "similarities": "generator.start.transplant.similarity",
    "solvers": "sample.sampler.solver",
    "metrics": "evaluate.metrics, or metrics of a card",
}
ANY = "NAME"  # stands for a name that a recipe gives itself
NOTHING = "  There is nothing to set."


def describe(name: str | None = None) -> str:
    """All sections and kinds, a line each; of one section (`generator.loop`) or kind (`titok`), all it can be given.

    Raises ValueError, with the nearest name, for what is neither.
    """
    sections = dict(sections_of(Recipe))
    if name is None:
        return overview(sections)
    if matching := [path for path in sections if matches(name, path)]:
        return section(matching[0], sections[matching[0]])
    matching = [(slot, kind) for slot in PLACES for kind in kinds(slot) if name in (kind, f"{slot}.{kind}")]
    if not matching:
        known = [*sections, *(kind for slot in PLACES for kind in kinds(slot))]
        raise ValueError(f"nothing is called {name!r}{suggestion(name, known)}")
    return "\n\n".join(component(slot, kind) for slot, kind in matching)


def sections_of(cls: type, above: str = "") -> Iterator[tuple[str, type]]:
    """The mappings of a recipe by their path, as the schema has them."""
    for name, hint in get_type_hints(cls).items():
        for inner in members(hint):
            if is_dataclass(inner):
                path = f"{above}{name}" + (f".{ANY}" if get_origin(hint) is dict else "")
                yield path, inner
                yield from sections_of(inner, f"{path}.")


def members(hint: Any) -> Iterator[Any]:
    """A type, and all that it is put together from."""
    yield hint
    for inner in get_args(hint):
        yield from members(inner)


def matches(name: str, path: str) -> bool:
    """Whether a name such as `tokenizer.phases.main.loop` is at `tokenizer.phases.NAME.loop`."""
    asked, parts = name.split("."), path.split(".")
    return len(asked) == len(parts) and all(part in (ANY, one) for one, part in zip(asked, parts))


def overview(sections: dict[str, type]) -> str:
    """A line for each; what a section has inside is listed where its kind comes first."""
    rows, first = [], {}
    for path, cls in sections.items():
        above = path.rpartition(".")[0]
        if first.setdefault(cls, path) == path or above not in sections or first[sections[above]] == above:
            rows.append((path, first_sentence(cls) if first[cls] == path else f"as {first[cls]}"))
    groups = [("Sections of a recipe", rows)]
    for slot, place in PLACES.items():
        groups.append((f"Kinds of {slot}, at {place}", [(kind, headline(slot, kind)) for kind in kinds(slot)]))
    wide = max(len(name) for _, rows in groups for name, _ in rows) + 3
    texts = ["\n".join([title, *(f"  {name:<{wide}}{says}" for name, says in rows)]) for title, rows in groups]
    return "\n\n".join([*texts, f"Every setting of one of them: {command_line('describe NAME')}"])


def headline(slot: str, kind: str) -> str:
    """What the kind's file is for."""
    return inspect.getdoc(importlib.import_module(f"pipeline.{slot}.{kind}")).partition("\n")[0]


def first_sentence(cls: type) -> str:
    return " ".join(inspect.getdoc(cls).split("\n\n")[0].split())


def section(path: str, cls: type) -> str:
    """What a section is for, and its fields."""
    return "\n".join([path, "", inspect.getdoc(cls), "", *fields_of(cls)])


def fields_of(cls: type) -> list[str]:
    """The fields of a record with their types, defaults and comments."""
    types, comments, hints, lines = {}, {}, type_hints(cls), []
    for record in filter(is_dataclass, reversed(cls.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(record))).body[0].body
        types |= {node.target.id: ast.unparse(node.annotation) for node in body if isinstance(node, ast.AnnAssign)}
        comments |= comments_of(record)
    for f in fields(cls):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        lines.append(setting(f.name, values_of(hints[f.name], types[f.name]), default, MISSING, comments))
    return lines


def component(slot: str, kind: str) -> str:
    """What a kind is, and the arguments that a recipe states; of an objective, those of its sampler, too."""
    cls = find(slot, kind)
    shown = lambda parameter: parameter.name not in DERIVED.get(slot, ())  # noqa: E731
    lines = fields_of(cls) if is_dataclass(cls) else arguments_of(cls.__init__, shown)
    for record in records_of(cls.__init__):
        lines += ["", f"{record.__name__}: {inspect.getdoc(record)}", "", *fields_of(record)]
    for name, choices in getattr(cls, "choices", {}).items():
        for choice, of in choices.items():
            stated = lambda parameter: parameter.name not in DERIVED_ARGUMENTS  # noqa: E731
            arguments = arguments_of(of.__init__, stated) or [NOTHING]
            lines += ["", f"{name}.kind={choice}: {inspect.getdoc(of)}", "", *arguments]
    if slot == "objectives":
        lines += sampler_of(cls)
    if slot == "metrics":
        lines += cls.description()
    about = [f"{kind}, at {PLACES[slot]}", "", headline(slot, kind), "", inspect.getdoc(cls), ""]
    return "\n".join([*about, *(lines or [NOTHING])])


def sampler_of(objective: type) -> list[str]:
    """The settings of an objective's sampler, and of each of its solvers."""
    solvers = solvers_of(objective.solves) if objective.solves else {}
    standard = [kind for kind, solver in solvers.items() if solver is type(objective.settings().solver)]
    lines = [f"  solver: {' | '.join(solvers)} = {standard[0]}"] if solvers else []
    lines += [line for line in fields_of(objective.settings) if not line.startswith("  solver: ")]
    for kind, solver in solvers.items():
        lines += ["", f"solver={kind}: {inspect.getdoc(solver)}", "", *(fields_of(solver) or [NOTHING])]
    return ["", f"At sample.sampler: {inspect.getdoc(objective.settings)}", "", *(lines or [NOTHING])]


def arguments_of(function: Callable, shown: Callable[[inspect.Parameter], bool]) -> list[str]:
    """The arguments that are `shown`, with their types, defaults and comments."""
    source = inspect.unwrap(function)
    declared = ast.parse(textwrap.dedent(inspect.getsource(source))).body[0].args
    types = {a.arg: ast.unparse(a.annotation) for a in declared.args + declared.kwonlyargs if a.annotation}
    hints, comments, lines = type_hints(source), comments_of(source), []
    for name, parameter in inspect.signature(source).parameters.items():
        if name in types and shown(parameter):
            nested = name in NESTED and takes_mapping(hints[name])
            of = f"one of {NESTED[name]}" if nested else values_of(hints[name], types[name])
            lines.append(setting(name, of, parameter.default, parameter.empty, comments))
    return lines


def values_of(hint: Any, text: str) -> str:
    """The values that a type has, where these are few, or its ranges, else its name as the source has it."""
    if stated_ranges(hint):
        return ranges_of(hint)
    if get_origin(hint) in (Union, UnionType):
        parts = [values_of(inner, "") for inner in get_args(hint) if inner is not NoneType]
        return text if "" in parts else " | ".join([*parts, "null"])
    return " | ".join(map(str, get_args(hint))) if get_origin(hint) is Literal else text


def ranges_of(hint: Any) -> str:
    """A type whose numbers have ranges: `int (1 or more) | null`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        allowed = [
            str(rule).removeprefix("a fraction, ").removeprefix("a number ") for rule in inner[1:] if rule != Range()
        ]
        return ranges_of(inner[0]) + "".join(f" ({rule})" for rule in allowed)
    if origin in (Union, UnionType, Literal):
        return " | ".join(ranges_of(one) if origin is not Literal else str(one) for one in inner)
    if origin is None:
        return {NoneType: "null", Ellipsis: "..."}.get(hint) or hint.__name__
    return f"{origin.__name__}[{', '.join(map(ranges_of, inner))}]"


def records_of(function: Callable) -> list[type]:
    """The records among the types of the arguments."""
    hints = get_type_hints(inspect.unwrap(function)).values()
    return [inner for hint in hints for inner in (hint, *get_args(hint)) if is_dataclass(inner)]


def setting(name: str, of: str, default: Any, none: Any, comments: dict[str, str]) -> str:
    """A line of a listing; `none` is what `default` is where a value must be stated."""
    given = "" if default is none else f" = {format_value(default)}"
    return f"  {name}: {of}{given}" + (f"  # {comments[name]}" if name in comments else "")


def format_value(value: Any) -> str:
    """A default as a recipe would state it; a section of its own as an empty one."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "{}" if is_dataclass(value) else str(list(value) if isinstance(value, tuple) else value)


def comments_of(thing: Any) -> dict[str, str]:
    """By the name that a line of its source begins with, the comment that the line ends with."""
    comments = {}
    for line in inspect.getsource(thing).splitlines():
        code, mark, comment = line.partition("  # ")
        name, colon, _ = code.strip().partition(":")
        if mark and colon and name.isidentifier() and not comment.startswith("noqa"):
            comments.setdefault(name, comment.strip())
    return comments
