"""Packs the source that a saved component needs into one readable file, so that diffusers alone can load it."""

import ast
import hashlib
import importlib.util
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.components import NESTED, SLOTS, kinds
from pipeline.files.writing import read_json, write_json, write_text
from pipeline.publishing.name_scopes import module_bindings, references
from pipeline.saved_folders import INDEX
from pipeline.solvers.base import solvers_of

ROOT = "pipeline"
PIPELINE = "pipeline.latent_pipeline"
COMPONENTS = "pipeline.components"
BY_STRING = ("find", "kinds")  # functions of `components` that import by string; a packed file has a table instead
Binding = tuple[str, str]  # (module, name): what a name at the top of a file stands for; name "" is the module itself


@dataclass
class Source:
    """One of our modules, parsed."""

    module: str
    text: bytes
    tree: ast.Module

    @property
    def label(self) -> str:
        return self.module.removeprefix(f"{ROOT}.").replace(".", "_")


def write_self_contained(pipeline: Path, out: Path) -> None:
    """A copy of a pipeline's folder that `DiffusionPipeline.from_pretrained(out, trust_remote_code=True)` loads.

    Layout: one file beside model_index.json, one in each component's folder; names carry a hash of their content,
    since diffusers copies the code of all pipelines into one folder.
    """
    index = read_json(pipeline / INDEX)
    out.mkdir(parents=True, exist_ok=True)
    index["_class_name"] = [_write_module(PIPELINE, index["_class_name"], {}, out), index["_class_name"]]
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or entry[0] is None:
            continue
        shutil.copytree(pipeline / part, out / part, dirs_exist_ok=True, copy_function=_link)
        if entry[0].startswith(f"{ROOT}."):
            index[part] = [_write_module(*entry, _config(pipeline / part), out / part), entry[1]]
    write_json(out / INDEX, index, sort_keys=True)


def pack(module: str, class_name: str, config: Mapping[str, Any]) -> str:
    """The source of one file with `module` and all that it needs of ours, among it the kinds named in `config`.

    Names that two modules use for different things are told apart by the module's name. Raises ValueError for imports
    that cannot be packed.
    """
    parts = list(dict.fromkeys([*_nested(config), *_named(module)]))
    sources = _in_order([*(f"{ROOT}.{slot}.{kind}" for slot, kind in parts), module])
    names = _final_names(sources, (module, class_name))
    table = {(slot, kind): names[_class_of(sources, f"{ROOT}.{slot}.{kind}")] for slot, kind in parts}
    bodies = [_body(source, sources, names, table) for source in sources.values()]
    doc = f'"""{class_name} and what it needs, in one file; made from the modules named in the comments."""'
    return "\n\n".join([doc, "\n".join(_external_imports(sources, names)), *bodies]) + "\n"


def _write_module(module: str, class_name: str, config: Mapping[str, Any], folder: Path) -> str:
    text = pack(module, class_name, config)
    kind = module.rpartition(".")[2].replace("latent_pipeline", "pipeline")
    name = f"tessera_{kind}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    for old in folder.glob(f"tessera_{kind}_*.py"):
        old.unlink()
    write_text(folder / f"{name}.py", text)
    return name


def _link(source: str, target: str) -> None:
    """Weights are not stored twice where the disk can avoid it."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return read_json(file) if file.exists() else {}


def _nested(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(slot, kind) of the components that a component makes in its constructor."""
    for name, value in config.items():
        if name in NESTED and isinstance(value, Mapping):
            yield from _nested(value)
            yield NESTED[name], value["kind"]


def _named(module: str) -> Iterator[tuple[str, str]]:
    """(slot, kind) of the components that a module's own source names beside their slot."""
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_bytes())
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for slot in sorted(words.intersection(SLOTS)):
        yield from ((slot, kind) for kind in kinds(slot) if kind in words)
    if module.startswith(f"{ROOT}.objectives."):  # which solves a problem, and is sampled by any of its solvers
        yield from (("solvers", kind) for problem in sorted(words) for kind in solvers_of(problem))


def _in_order(modules: list[str], done: dict[str, Source] | None = None) -> dict[str, Source]:
    """The sources of `modules` and of all they import of ours, each after what it needs."""
    done = {} if done is None else done
    for module in modules:
        if module not in done:
            text = Path(importlib.util.find_spec(module).origin).read_bytes()
            source = Source(module, text, ast.parse(text))
            _in_order([target for target, _ in _our_imports(source).values()], done)
            done[module] = source
    return done


def _our_imports(source: Source) -> dict[str, Binding]:
    """What each name imported from our modules stands for; (module, "") is a module itself."""
    imports: dict[str, Binding] = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and _is_ours(node):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = importlib.util.find_spec(node.module).submodule_search_locations and (
                    importlib.util.find_spec(inner) is not None
                )
                imports[alias.asname or alias.name] = (inner, "") if is_module else (node.module, alias.name)
        elif isinstance(node, ast.Import) and any(a.name.split(".")[0] == ROOT for a in node.names):
            raise ValueError(f"{source.module}, line {node.lineno}: write `from pipeline... import name` to be packed")
    return imports


def _is_ours(node: ast.ImportFrom) -> bool:
    if node.level:
        raise ValueError(f"a relative import at line {node.lineno} cannot be packed; write `from pipeline...`")
    return (node.module or "").split(".")[0] == ROOT


def _top_imports(source: Source) -> Iterator[tuple[ast.stmt, str, Binding]]:
    """Imports of other projects at the top of a file: the statement, the name it gives, and what that stands for."""
    for node in source.tree.body:
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not _is_ours(node)):
            for alias in node.names:
                if isinstance(node, ast.Import):
                    whole = alias.name if alias.asname else alias.name.split(".")[0]
                    yield node, alias.asname or whole, (f"import {alias.name}", "")
                else:
                    yield node, alias.asname or alias.name, (f"from {node.module}", alias.name)


def _bindings(source: Source) -> dict[str, Binding]:
    """What every name at the top of a module stands for."""
    own = {name: (source.module, name) for name in module_bindings(source.tree)}
    return own | {name: binding for _, name, binding in _top_imports(source)} | _our_imports(source)


def _final_names(sources: dict[str, Source], first: Binding) -> dict[Binding, str]:
    """One name for each thing in the packed file, its own wherever that is free; `first` keeps its name."""
    names, taken = {first: first[1]}, {first[1]}
    for source in sources.values():
        own = [(name, (source.module, name)) for name in sorted(module_bindings(source.tree))]
        for name, binding in [*((name, binding) for _, name, binding in _top_imports(source)), *own]:
            if binding in names:
                continue
            while name in taken:
                name = f"{name}_of_{source.label}"
            names[binding] = name
            taken.add(name)
    return names


def _external_imports(sources: dict[str, Source], names: dict[Binding, str]) -> list[str]:
    lines = set()
    for source in sources.values():
        for _, _, (statement, name) in _top_imports(source):
            final = names[statement, name]
            given = name or statement.removeprefix("import ")
            imported = f"{statement} import {name}" if name else statement
            lines.add(imported if final == given.split(".")[0] else f"{imported} as {final}")
    return sorted(lines)


def _class_of(sources: dict[str, Source], module: str) -> Binding:
    """The component's class in its file: the one whose name is the file's, in CamelCase."""
    kind = module.rpartition(".")[2].replace("_", "")
    classes = (node.name for node in sources[module].tree.body if isinstance(node, ast.ClassDef))
    return next((module, name) for name in classes if name.lower() == kind)


def _body(source: Source, sources: dict[str, Source], names: dict[Binding, str], table: dict) -> str:
    """A module's text without its imports and docstring, its names as they are in the packed file."""
    starts = [0, *itertools.accumulate(map(len, source.text.splitlines(keepends=True)))]

    def span(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def lines(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1], starts[node.end_lineno]

    edits = [(*lines(node), b"") for node in {node for node, _, _ in _top_imports(source)}]
    if ast.get_docstring(source.tree):
        edits.append((*lines(source.tree.body[0]), b""))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and _is_ours(node):
            edits.append((*lines(node), b"") if node in source.tree.body else (*span(node), b"pass"))
        if source.module == COMPONENTS and isinstance(node, ast.FunctionDef) and node.name in BY_STRING:
            edits.append((*span(node), _by_table(node.name, names[COMPONENTS, node.name], table).encode()))
    whole = [(start, end) for start, end, _ in edits]
    for place, new in _renamings(source, sources, names, span):
        if not any(start <= place[0] < end for start, end in whole):
            edits.append((*place, new))
    text = source.text
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    heading = f"# {source.module.replace('.', '/')}.py: {ast.get_docstring(source.tree) or ''}".splitlines()[0]
    return f"{heading}\n\n{text.decode().strip()}"


def _renamings(source: Source, sources: dict[str, Source], names: dict[Binding, str], span: Any) -> Iterator:
    """Places in the text where a name is another one in the packed file."""
    bindings = _bindings(source)
    for name, start, node in references(source.tree, source.text, span):
        if name not in bindings:
            continue
        binding, end = bindings[name], start + len(name.encode())
        if binding[0] in sources and not binding[1]:  # a module of ours: its attribute is what is meant
            if not isinstance(node, ast.Attribute):
                raise ValueError(f"{source.module}, line {node.lineno}: {name} can only be packed as {name}.<name>")
            yield (start, span(node)[1]), names[_resolve(sources, (binding[0], node.attr))].encode()
        elif (final := names[_resolve(sources, binding)]) != name:
            yield (start, end), final.encode()


def _resolve(sources: dict[str, Source], binding: Binding) -> Binding:
    """What a name stands for in the end, where a module passes on what it imported itself."""
    while binding[0] in sources and (onward := _bindings(sources[binding[0]])[binding[1]]) != binding:
        binding = onward
    return binding


def _by_table(function: str, name: str, table: Mapping[tuple[str, str], str]) -> str:
    """`find` or `kinds` of `components` over what the file holds, in place of an import by string."""
    if function == "kinds":
        return f"def {name}(slot: str) -> list[str]:\n    return [kind for at, kind in {list(table)} if at == slot]"
    entries = ", ".join(f'("{slot}", "{kind}"): {cls}' for (slot, kind), cls in table.items())
    return f"def {name}(slot: str, kind: str) -> type:\n    return {{{entries}}}[slot, kind]"
