"""The stages, in order: the only list of them.

A stage is a module: its docstring says what it does, READS and WRITES name artefacts, IMAGES the splits that its result
depends on beside these, PRECISION which word of the recipe's `precision` it computes in, `uses` says which part of a
recipe it depends on, and `run` does it. What the help prints is read off the source, since importing a stage imports
torch and all that it needs.
"""

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ORDER = (
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
    writes: str  # the artefact that it makes
    images: tuple[str, ...]  # splits that it looks at, beside what it reads; both where the module does not say
    precision: str | None  # whose word of the recipe's `precision` it computes in; None where it computes nothing

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
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    reads, writes = (ast.literal_eval(assigned[constant]) for constant in ("READS", "WRITES"))
    images = ast.literal_eval(assigned["IMAGES"]) if "IMAGES" in assigned else ("train", "held_out")
    precision = ast.literal_eval(assigned["PRECISION"]) if "PRECISION" in assigned else None
    return Stage(name, ast.get_docstring(tree), reads, writes, images, precision)


def table() -> list[Stage]:
    """Every stage, in order."""
    return [describe(name) for name in ORDER]


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
