"""Compares optimisers of the digits' generator at equal time: Muon with AdamW for the rest, and AdamW alone.

    python benchmarks/optimizers.py [--seeds 5] [--workers 2] [--folder runs/optimizers] [--rates 1e-3 2e-3 4e-3]

First the time of a step of both is measured, alternately, in one process on one thread. AdamW trains for the recipe's
1,200 steps, and Muon for as many as take the same time; the file `steps.json` in FOLDER keeps these numbers, so that a
run that continues uses the same. Every optimiser is tried at every rate; tokenizer and codes are the same for all of a
seed. `loss` is the flow's loss in the last tenth of the training, `fd` the distance of samples by the classifier of
the report and `pixels` by pixels, `accuracy` how many samples are of the class that was asked for, `seconds` what the
training took. Medians over seeds; the last line of each optimiser is its best rate by loss. Every seed runs in one
process on one thread; one that has finished in FOLDER is not run again.
"""

import json
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from quality_runs import (
    Experiment,
    Results,
    Tables,
    create_parser,
    parse_arguments,
    print_tables,
    run_experiments,
    select,
)

STEPS, ROUNDS, TIMED = 1200, 5, 20
KINDS = ("adamw", "muon")
COLUMNS = {"loss": "loss", "fd_classifier": "fd", "fd_pixels": "pixels", "class_accuracy": "accuracy"}


def seconds_of_steps(steps: int = TIMED, rounds: int = ROUNDS) -> dict[str, float]:
    """The time of a step of the digits' generator by optimiser, the median of alternating trainings."""
    import torch
    from accelerate import Accelerator

    from pipeline.checks.recipe import check_recipe
    from pipeline.code import Code, Condition
    from pipeline.latents.code_source import CodeBatch
    from pipeline.recipes.building import build_network
    from pipeline.recipes.schema import load
    from pipeline.training.generation import Generation
    from pipeline.training.loop import TrainingRun, train

    torch.set_num_threads(1)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}

    class Codes:
        def __len__(self) -> int:
            return 1000

        def batch(self, indices: torch.Tensor, seeds: torch.Tensor) -> CodeBatch:
            z = torch.randn(len(indices), *spec.shape, generator=torch.Generator().manual_seed(0))
            return CodeBatch(Code(z), condition=Condition(indices % 10))

    for kind in KINDS * rounds:
        recipe = load("digits", [f"generator.loop.optimizer.kind={kind}", f"generator.loop.steps={steps}"])
        checked, part = check_recipe(recipe), recipe.generator
        spec, objective = checked.spec, checked.generator.objective
        part.loop.warmup, part.loop.save_every = 0, 0
        task = Generation(build_network(recipe, spec, 10, objective), objective, part.weights)
        with tempfile.TemporaryDirectory() as folder:
            run = TrainingRun(part.loop, Path(folder), 0, Accelerator(cpu=True))
            start = time.perf_counter()
            train(task, Codes(), run)
            times[kind].append((time.perf_counter() - start) / steps)
    return {kind: statistics.median(each) for kind, each in times.items()}


def equal_steps(arguments: Namespace) -> dict[str, int]:
    """Steps of every optimiser that take as long as AdamW's, measured once for a folder."""
    file = arguments.folder / "steps.json"
    if not file.exists():
        seconds = seconds_of_steps(2, 1) if arguments.quick else seconds_of_steps()
        steps = {kind: round(STEPS * seconds["adamw"] / each) for kind, each in seconds.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"steps": steps, "seconds_of_a_step": seconds}, indent=1) + "\n")
    return json.loads(file.read_text())["steps"]


class WithLoss(Experiment):
    """An experiment whose results have the loss of the generator's last steps, too."""

    def measure(self, folder: Path, run_folder: Path, overrides: list[str]) -> dict:
        measured = super().measure(folder, run_folder, overrides)
        lines = [json.loads(line) for line in (run_folder / "generator" / "metrics.jsonl").read_text().splitlines()]
        last = [line["network/flow"] for line in lines if line["step"] > 0.9 * lines[-1]["step"]]
        return measured | {"loss": statistics.mean(last)}


def experiments(arguments: Namespace, steps: dict[str, int]) -> list[Experiment]:
    """One a seed, with a variant for each optimiser and rate."""
    variants = {
        f"{kind} {rate:g}": (
            f"generator.loop.optimizer.kind={kind}",
            f"generator.loop.lr.network={rate}",
            f"generator.loop.steps={steps[kind]}",
        )
        for kind in KINDS
        for rate in arguments.rates
    }
    logged = ("generator.loop.log_every=10",)
    return [WithLoss("digits", {"part": "optimizers"}, seed, logged, variants) for seed in range(arguments.seeds)]


def table(results: Results) -> Iterator[str]:
    """A line for each optimiser and rate, and the best of each again."""
    yield f"{'':<16}" + "".join(f"{title:>10}" for title in [*COLUMNS.values(), "seconds"]) + "   medians over seeds"
    variants = {result["variant"] for result in results}
    for kind in KINDS:
        mine = sorted((name for name in variants if name.startswith(kind)), key=lambda name: float(name.split()[1]))
        for name in mine:
            yield row(name, select(results, {"variant": name}))
        if mine:
            best = min(mine, key=lambda name: middle(select(results, {"variant": name}), "loss"))
            yield row(f"best {best}", select(results, {"variant": best}))


def row(name: str, results: Results) -> str:
    numbers = [f"{middle(results, key):>10.4f}" for key in COLUMNS]
    return f"{name:<16}{''.join(numbers)}{middle(results, 'seconds'):>10.0f}   {len(results)} seeds"


def middle(results: Results, key: str) -> float:
    return statistics.median(result.get(key, float("nan")) for result in results)


TABLES: Tables = {"optimizers": [table]}


def main() -> None:
    parser = create_parser(__doc__, "runs/optimizers", 5, TABLES)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    arguments = parse_arguments(parser)
    results = run_experiments(experiments(arguments, equal_steps(arguments)), arguments)
    print((arguments.folder / "steps.json").read_text())
    print_tables(TABLES, arguments.parts, [result for result in results if "variant" in result])


if __name__ == "__main__":
    main()
