"""Many small runs for benchmarks of quality: one process and one thread per run, resumable, their results in tables.

Not a benchmark itself. An `Experiment` is a recipe with overrides at one seed; its variants are further overrides, run
one after the other in one folder, so that the stages that they have in common run once.
"""

import contextlib
import json
import math
import os
import shutil
import statistics
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the modules of this checkout, also in workers; they are imported where they are used

Results = list[dict[str, Any]]  # of each variant: tags, seed, name of the variant, and what was measured
BySeed = dict[int, float]
Tables = dict[str, list[Callable[[Results], Iterator[str]]]]  # by part of a benchmark


@dataclass(frozen=True)
class TokenizerSource:
    """The experiment of the same seed that trains the same tokenizer."""

    recipe: str
    tags: dict[str, str]


@dataclass(frozen=True)
class Experiment:
    """A recipe with overrides at one seed, and the variants of it that are measured.

    `tags` tell it from other experiments: they name its folder and stand in each of its results. With `card` a result
    is the numbers of the tokenizer card, else those of the report, where stages run so far: up to `last_stage`. Where
    the experiment `tokenizer_source` has a tokenizer, it is copied instead of trained again.
    """

    recipe: str
    tags: dict[str, str]
    seed: int
    overrides: tuple[str, ...]
    variants: dict[str, tuple[str, ...]]
    card: bool = False
    last_stage: str = "evaluate"
    tokenizer_source: TokenizerSource | None = None

    @property
    def name(self) -> str:
        return ", ".join([*self.tags.values(), f"seed {self.seed}"])

    def run(self, folder: Path, quick: bool = False) -> None:
        """Measure every variant that has no result yet; a result is a JSON file of its own."""
        place = experiment_folder(folder, self.tags, self.seed)
        place.mkdir(parents=True, exist_ok=True)
        os.chdir(place)  # the worker is a process of its own
        run_folder = place / "runs" / self.recipe
        with open(place / "log.txt", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            for variant, changes in self.variants.items():
                file = place / f"{variant}.json"
                if not file.exists():
                    measured = self.measure(folder, run_folder, self.overrides_of(changes, quick))
                    result = self.tags | {"seed": self.seed, "variant": variant} | measured
                    file.write_text(json.dumps(result, indent=1) + "\n")

    def overrides_of(self, changes: tuple[str, ...], quick: bool) -> list[str]:
        """All overrides of the variant with these changes."""
        overrides = [f"seed={self.seed}", *self.overrides, *changes]
        return [*overrides, *quick_overrides(self.recipe, overrides)] if quick else overrides

    def measure(self, folder: Path, run_folder: Path, overrides: list[str]) -> dict[str, Any]:
        """Run the stages; returns the numbers of the report or the card by key, and the record of post-training."""
        import run
        import stages
        from pipeline.commands.card import card
        from pipeline.recipes.files import origin
        from pipeline.recipes.schema import load, settings
        from pipeline.runs.machine import start
        from stages import ORDER

        recipe = load(self.recipe, overrides)
        with start(recipe).claim(origin(self.recipe), settings(recipe)):  # so that it is a run before it has anything
            self.copy_tokenizer(folder, run_folder)
        for stage in stages.line(recipe):
            if ORDER.index(stage.name) <= ORDER.index(self.last_stage):
                run.run_stages(recipe, self.recipe, overrides, stage.name)
        if self.card:
            card([str(run_folder), "prior_steps=1"])
            numbers = json.loads((run_folder / "card" / "card.json").read_text())["numbers"]
            return {key: number["value"] for key, number in numbers.items()} | {"details": details_of(numbers)}
        if ORDER.index(self.last_stage) < ORDER.index("evaluate"):
            measured = {"seconds_of_stages": seconds_of_stages(run_folder), "rates": rates_of_trainings(run_folder)}
            return measured | {"losses": losses_of_generator(run_folder), "joint": last_of_joint_training(run_folder)}
        numbers = json.loads((run_folder / "report" / "metrics.json").read_text())
        record = run_folder / "decoder" / "posttraining.json"
        seconds = seconds_of_stages(run_folder)
        measured = {"posttraining": json.loads(record.read_text()) if record.exists() else None}
        measured |= {"held_out": numbers["fd_classifier"]["held_out"]}
        measured |= {"seconds": seconds["generator"], "seconds_of_stages": seconds}
        return measured | {key: number["value"] for key, number in numbers.items()}

    def copy_tokenizer(self, folder: Path, run_folder: Path) -> None:
        if (source := self.tokenizer_source) is None:
            return
        other = experiment_folder(folder, source.tags, self.seed) / "runs" / source.recipe
        for name in ("tokenizer", "joint", "latents"):
            if (other / name / "made_from.json").exists() and not (run_folder / name).exists():
                shutil.copytree(other / name, run_folder / name)


def experiment_folder(folder: Path, tags: dict[str, str], seed: int) -> Path:
    return folder.joinpath(*(tag.replace(" ", "_").replace(",", "") for tag in tags.values()), str(seed))


def quick_overrides(name: str, overrides: Sequence[str] = ()) -> list[str]:
    """Further overrides that shorten every training of a recipe to two steps and leave few images."""
    from pipeline.recipes.schema import load

    recipe = load(name, overrides)
    short = [f"tokenizer.phases.{name}.loop.steps=2" for name in recipe.tokenizer.phases]
    short += ["generator.loop.steps=2", "sample.images=20", "evaluate.images=40"]
    if recipe.generator.milestones:
        short += ["generator.milestones=[1]", "sample.weak.step=1"]
    if recipe.joint is not None:
        short += ["joint.phase.loop.steps=2"]
    if recipe.posttrain is not None:
        short += ["posttrain.phase.loop.steps=2", "posttrain.pairs=16", "posttrain.held_out=8"]
    return short


def details_of(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: number["details"] for key, number in numbers.items() if number.get("details")}


def seconds_of_stages(run_folder: Path) -> dict[str, float]:
    """Seconds that each stage of a run took, by the name of its artefact, whose note holds them."""
    import stages

    notes = {stage.writes: run_folder / stage.writes / "made_from.json" for stage in stages.table()}
    return {name: json.loads(note.read_text())["seconds"] for name, note in notes.items() if note.exists()}


def rates_of_trainings(run_folder: Path) -> dict[str, float]:
    """Steps a second of the generator's training and of each phase of the tokenizer's, by the phase's name.

    Of the fastest stretch between two lines of a log, in which other work on the machine took least.
    """
    phases = {folder.name: folder for folder in run_folder.glob("tokenizer/phases/*")}
    rates = {}
    for name, folder in (phases | {"generator": run_folder / "generator"}).items():
        if not (folder / "metrics.jsonl").exists():
            continue  # the line was not run so far
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        rates[name] = max(line["rate"] for line in lines if "rate" in line)
    return rates


def losses_of_generator(run_folder: Path) -> dict[str, float]:
    """The held-out losses of the generator's training by step, as its previews have them; 0: before a transplant's."""
    folder = run_folder / "generator"
    losses = {}
    if (start := folder / "transplant.json").exists():
        losses["0"] = json.loads(start.read_text())["held_out"]
    rows = json.loads((folder / "held_out.json").read_text()) if (folder / "held_out.json").exists() else []
    return losses | {str(row["step"]): row["held_out"] for row in rows}


def last_of_joint_training(run_folder: Path) -> dict[str, float]:
    """What joint training logs at its last step, with the held-out terms of its last preview as held_out/TERM."""
    log, previews = (run_folder / "joint" / name for name in ("metrics.jsonl", "held_out.json"))
    if not (log.exists() and previews.exists()):
        return {}
    terms = json.loads(previews.read_text())[-1]["terms"]
    return json.loads(log.read_text().splitlines()[-1]) | {f"held_out/{name}": value for name, value in terms.items()}


def prepare_worker() -> None:
    import torch

    torch.set_num_threads(1)


def run_experiments(experiments: list[Experiment], arguments: Namespace) -> Results:
    """Run what has no result in the folder yet; returns all results in it."""
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context, initializer=prepare_worker) as pool:
        futures = {pool.submit(each.run, arguments.folder, arguments.quick): each for each in experiments}
        for number, future in enumerate(as_completed(futures), 1):
            future.result()
            print(f"{number}/{len(futures)} {futures[future].name}", flush=True)
    return read_results(arguments.folder)


def create_parser(description: str, folder: str, seeds: int, parts: Iterable[str]) -> ArgumentParser:
    """With the arguments that these benchmarks have in common."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds, help="0 prints the tables of the results in the folder")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(folder))
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two steps of every training, to see that everything runs; numbers mean nothing, and go to FOLDER_quick",
    )
    return parser


def parse_arguments(parser: ArgumentParser) -> Namespace:
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    arguments.folder = folder.with_name(f"{folder.name}_quick") if arguments.quick else folder
    return arguments


def read_results(folder: Path) -> Results:
    """Of every experiment that has begun; a log lies beside its results."""
    logs = sorted(folder.glob("**/[0-9]*/log.txt"))
    return [json.loads(path.read_text()) for log in logs for path in sorted(log.parent.glob("*.json"))]


def select(results: Results, tags: dict[str, str]) -> Results:
    """The results that have these tags (or this name of a variant)."""
    return [result for result in results if result.items() >= tags.items()]


def values_by_seed(results: Results, key: str, scale: float = 1.0, **tags: str) -> BySeed:
    """One number, times `scale`, of the results that have these tags."""
    return {result["seed"]: scale * result[key] for result in select(results, tags)}


def print_tables(tables: Tables, parts: Iterable[str], results: Results) -> None:
    for part in parts:
        for table in tables[part]:
            print("\n" + "\n".join(table(results)))


def mean_and_spread(values: Iterable[float], digits: int = 3) -> str:
    """The spread is the standard deviation."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def mean_difference(before: BySeed, after: BySeed, digits: int = 3) -> str:
    """Mean and spread of the paired differences."""
    return mean_and_spread([after[seed] - before[seed] for seed in before.keys() & after.keys()], digits)


def rank_correlation(first: list[float], second: list[float]) -> float:
    ranks = [[sorted(values).index(value) for value in values] for values in (first, second)]
    return statistics.correlation(*ranks) if not any(math.isnan(v) for v in (*first, *second)) else math.nan
