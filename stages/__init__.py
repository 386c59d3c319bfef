"""The stages, in order: the only list of them.

A stage is a module: its docstring says what it does, READS and WRITES name artefacts, IMAGES the splits that its result
depends on beside these, PRECISION which word of the recipe's `precision` it computes in, `uses` says which part of a
recipe it depends on, and `run` does it. NEEDS names a section of the recipe without which its line has no such stage,
nor those that read what this one makes; READS_WHERE_MADE names artefacts that it does without in such a line. What the
help prints is read off the source, since importing a stage imports torch and all that it needs.
"""

import ast
import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

ORDER = (
    "encode_text",
    "train_tokenizer",
    "train_jointly",
    "encode_dataset",
    "train_generator",
    "posttrain_decoder",
    "sample",
    "evaluate",
    "publish",
)


@dataclass(frozen=True)
class Stage:
    """What a stage's module says of itself."""

    name: str
    purpose: str  # the module's docstring, whose first line is a sentence
    reads: tuple[str, ...]  # artefacts of earlier stages
    reads_where_made: tuple[str, ...]  # those that it also reads in a line that makes them
    writes: str  # the artefact that it makes
    images: tuple[str, ...]  # splits that it looks at, beside what it reads; both where the module does not say
    precision: str | None  # whose word of the recipe's `precision` it computes in; None where it computes nothing
    needs: str | None  # the section without which a line has no such stage

    @property
    def command(self) -> str:
        return self.name.replace("_", "-")

    @property
    def headline(self) -> str:
        """The purpose as a line of the help."""
        first = self.purpose.partition("\n")[0].rstrip(".")
        return f"{first[0].lower()}{first[1:]} -> {self.writes}/"


def describe(name: str) -> Stage:
    """A stage by its name in ORDER, without importing it."""
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
    stated = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    reads, writes = (ast.literal_eval(stated[constant]) for constant in ("READS", "WRITES"))
    where_stated = {"READS_WHERE_MADE": (), "IMAGES": ("train", "held_out"), "PRECISION": None, "NEEDS": None}
    also, images, precision, needs = (
        ast.literal_eval(stated[constant]) if constant in stated else without
        for constant, without in where_stated.items()
    )
    return Stage(name, ast.get_docstring(tree), reads, also, writes, images, precision, needs)


def table() -> list[Stage]:
    """Every stage, in order."""
    return [describe(name) for name in ORDER]


def line(recipe: Any) -> list[Stage]:
    """The stages of a recipe's line, in order; `reads` of each is all that it reads there."""
    stages, made = [], set()
    for stage in table():
        there = stage.needs is None or getattr(recipe, stage.needs) is not None
        if there and made.issuperset(stage.reads):
            also = tuple(artefact for artefact in stage.reads_where_made if artefact in made)
            stages.append(replace(stage, reads=stage.reads + also))
            made.add(stage.writes)
    return stages


def picture() -> str:
    """The line as text: every stage in order, and the artefact that it makes below it."""
    pairs = [(stage.name, f"{stage.writes}/") for stage in table()]
    widths = [max(map(len, pair)) for pair in pairs]
    names, artefacts = ([text.center(width) for text, width in zip(row, widths)] for row in zip(*pairs))
    first = " images ─► "
    return f"{first}{' ─► '.join(names)}".rstrip() + "\n" + f"{'':{len(first)}}{'    '.join(artefacts)}".rstrip()


def load(name: str) -> ModuleType:
    """The module of a stage; only now are torch and what it needs imported."""
    return importlib.import_module(f"stages.{name}")
