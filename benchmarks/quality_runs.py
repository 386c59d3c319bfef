"""Many small runs for benchmarks of quality: a process and a thread each, resumable by folder, their numbers in tables.

Not a benchmark itself. A `Line` is a recipe with some changes, at one seed; its variants are further changes, run one
after the other in one folder, so that stages they share are made once.
"""

import contextlib
import json
import math
import os
import shutil
import statistics
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Rows = list[dict[str, Any]]
BySeed = dict[int, float]
Tables = dict[str, list[Callable[[Rows], Iterator[str]]]]  # by part of a benchmark


@dataclass(frozen=True)
class Line:
    """A recipe at one seed, in the folder `facts` joined, and the variants of it that are measured.

    `facts` are strings that say what it is; with the seed and the variant's name they are a part of every row. With
    `card` a row has the numbers of the tokenizer's card, and no generator is trained. `borrowed` are the facts of a
    line that trains the same tokenizer: where it is there, it is taken.
    """

    recipe: str
    facts: dict[str, str]
    seed: int
    overrides: tuple[str, ...]
    variants: dict[str, tuple[str, ...]]
    card: bool = False
    borrowed: dict[str, str] | None = None
    borrowed_recipe: str = ""

    @property
    def name(self) -> str:
        return ", ".join([*self.facts.values(), f"seed {self.seed}"])

    def place(self, folder: Path, facts: dict[str, str]) -> Path:
        return folder.joinpath(*(fact.replace(" ", "_").replace(",", "") for fact in facts.values()), str(self.seed))

    def run(self, folder: Path) -> None:
        """Measure every variant that is not yet measured; its row is a file of its own."""
        place = self.place(folder, self.facts)
        place.mkdir(parents=True, exist_ok=True)
        os.chdir(place)  # the worker is a process of its own
        work = place / "runs" / self.recipe
        with open(place / "log.txt", "a") as log, contextlib.redirect_stdout(log):
            for variant, changes in self.variants.items():
                result = place / f"{variant}.json"
                if not result.exists():
                    found = self.measure(folder, work, [f"seed={self.seed}", *self.overrides, *changes])
                    row = self.facts | {"seed": self.seed, "variant": variant} | found
                    result.write_text(json.dumps(row, indent=1) + "\n")

    def measure(self, folder: Path, work: Path, overrides: list[str]) -> dict[str, Any]:
        """The numbers of the report or the card, by key, and what post-training says of itself."""
        import run
        from pipeline.commands.card import card
        from pipeline.recipes.schema import load
        from stages import ORDER

        recipe = load(self.recipe, overrides)
        run.run_stages(recipe, self.recipe, overrides, ())
        self.borrow(folder, work)
        last = ORDER.index("encode_dataset" if self.card else "evaluate")
        run.run_stages(recipe, self.recipe, overrides, ORDER[: last + 1])
        if self.card:
            card([str(work), "prior_steps=1"])
            numbers = json.loads((work / "card" / "card.json").read_text())["numbers"]
            return {key: number["value"] for key, number in numbers.items()} | {"details": details_of(numbers)}
        numbers = json.loads((work / "report" / "metrics.json").read_text())
        record = work / "decoder" / "posttraining.json"
        found = {"posttraining": json.loads(record.read_text()) if record.exists() else None}
        found |= {"held_out": numbers["fd_classifier"]["held_out"], "seconds": seconds_of_training(work)}
        return found | {key: number["value"] for key, number in numbers.items()}

    def borrow(self, folder: Path, work: Path) -> None:
        if self.borrowed is None:
            return
        there = self.place(folder, self.borrowed) / "runs" / self.borrowed_recipe
        for name in ("tokenizer", "joint", "latents"):
            if (there / name / "made_from.json").exists() and not (work / name).exists():
                shutil.copytree(there / name, work / name)


def details_of(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: number["details"] for key, number in numbers.items() if number.get("details")}


def seconds_of_training(work: Path) -> float:
    """Of the generator, as its note says."""
    return json.loads((work / "generator" / "made_from.json").read_text())["seconds"]


def begin() -> None:
    """Make a worker ready: one thread, this checkout, and quiet."""
    sys.path.insert(0, str(ROOT))
    os.environ["TQDM_DISABLE"] = "1"
    import torch

    torch.set_num_threads(1)


def run_all(lines: list[Line], folder: Path, workers: int) -> None:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=begin) as pool:
        todo = {pool.submit(line.run, folder): line for line in lines}
        for number, done in enumerate(as_completed(todo), 1):
            done.result()
            print(f"{number}/{len(todo)} {todo[done].name}", flush=True)


def parser_of(description: str, folder: str, seeds: int, parts: Iterable[str]) -> ArgumentParser:
    """Of the arguments that these benchmarks share."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help="0 prints the tables of what is there")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(folder))
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    return parser


def rows_in(folder: Path) -> Rows:
    """Of every line that has begun; a log lies beside its rows."""
    logs = sorted(folder.glob("**/[0-9]*/log.txt"))
    return [json.loads(path.read_text()) for log in logs for path in sorted(log.parent.glob("*.json"))]


def print_tables(tables: Tables, parts: Iterable[str], rows: Rows) -> None:
    for part in parts:
        for table in tables[part]:
            print("\n" + "\n".join(table(rows)))


def mean(values: Iterable[float], digits: int = 3) -> str:
    """Mean and spread (standard deviation)."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def pick(rows: Rows, key: str, scale: float = 1.0, **at: str) -> BySeed:
    """One number by seed, of the rows that are `at` these values."""
    return {row["seed"]: scale * row[key] for row in rows if row.items() >= at.items()}


def change(before: BySeed, after: BySeed, digits: int = 3) -> str:
    """Mean and spread of the paired differences."""
    return mean([after[seed] - before[seed] for seed in before.keys() & after.keys()], digits)


def rank_correlation(first: list[float], second: list[float]) -> float:
    ranks = [[sorted(values).index(value) for value in values] for values in (first, second)]
    return statistics.correlation(*ranks) if not any(math.isnan(v) for v in (*first, *second)) else math.nan
