"""Which names in a module's source mean something at its top, as Python's scopes have it."""

import ast
from collections.abc import Callable, Iterator

Span = Callable[[ast.AST], tuple[int, int]]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def module_bindings(tree: ast.Module) -> set[str]:
    """Names that a module defines at its top, imports left out."""
    imported = {alias.asname or alias.name.split(".")[0] for node in tree.body for alias in _aliases(node)}
    return _bound(tree.body) - imported


def references(tree: ast.Module, text: bytes, span: Span) -> Iterator[tuple[str, int, ast.AST]]:
    """Every mention of a name at the top of the module: the name, its place in `text`, and the node.

    The node is the Attribute where the name is the owner of one. Raises ValueError where Python does not tell the
    place, which may happen inside of f-strings.
    """
    for name, node, local in _mentions(tree, frozenset()):
        if name in local:
            continue
        start, _ = span(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Global)):
            start = text.index(name.encode(), text.index(b" ", start))
        if text[start : start + len(name.encode())] != name.encode():
            raise ValueError(f"line {node.lineno}: the place of {name} is not told; take it out of the f-string")
        yield name, start, node


def _mentions(node: ast.AST, local: frozenset[str]) -> Iterator[tuple[str, ast.AST, frozenset[str]]]:
    """(name, node, names that are local there) of all names below `node`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        yield node.value.id, node, local
    elif isinstance(node, ast.Name):
        yield node.id, node, local
    elif isinstance(node, ast.Global):
        yield from ((name, node, frozenset()) for name in node.names)
    elif isinstance(node, FUNCTIONS):
        yield from _function(node, local)
    elif isinstance(node, ast.ClassDef):
        yield node.name, node, local
        for outer in [*node.decorator_list, *node.bases, *node.keywords]:
            yield from _mentions(outer, local)
        inside = local | _bound(node.body)
        for statement in node.body:  # methods do not see what the class binds, and their names are the class's own
            method = isinstance(statement, FUNCTIONS)
            yield from _function(statement, local, named=False) if method else _mentions(statement, inside)
    elif isinstance(node, COMPREHENSIONS):
        inside = local | {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        for child in ast.iter_child_nodes(node):
            yield from _mentions(child, inside)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _mentions(child, local)


def _function(
    node: ast.AST, local: frozenset[str], named: bool = True
) -> Iterator[tuple[str, ast.AST, frozenset[str]]]:
    """Defaults, annotations and decorators belong outside; parameters and what is assigned are local inside."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    every = [argument for argument in every if argument is not None]
    body = node.body if isinstance(node.body, list) else [node.body]
    outside = [
        *arguments.defaults,
        *(d for d in arguments.kw_defaults if d),
        *(a.annotation for a in every if a.annotation),
    ]
    if not isinstance(node, ast.Lambda):
        if named:
            yield node.name, node, local
        outside += [*node.decorator_list, *([node.returns] if node.returns else [])]
    for outer in outside:
        yield from _mentions(outer, local)
    inside = (local | {argument.arg for argument in every} | _bound(body)) - _declared_global(body)
    for statement in body:
        yield from _mentions(statement, inside)


def _bound(body: list[ast.AST]) -> set[str]:
    """Names that statements bind in their own scope."""
    names: set[str] = set()
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, (ast.Lambda, *COMPREHENSIONS)):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        names |= {alias.asname or alias.name.split(".")[0] for alias in _aliases(node)}
        waiting += ast.iter_child_nodes(node)
    return names


def _declared_global(body: list[ast.AST]) -> set[str]:
    return {name for node in body for inner in ast.walk(node) if isinstance(inner, ast.Global) for name in inner.names}


def _aliases(node: ast.AST) -> list[ast.alias]:
    """What an import binds; imports of ours bind nothing, since packing takes them out."""
    ours = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline"
    return node.names if isinstance(node, (ast.Import, ast.ImportFrom)) and not ours else []
