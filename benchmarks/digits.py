"""Times `python run.py all RECIPE` on the digits from an empty folder, and prints the numbers of its report.

    python benchmarks/digits.py [--runs 3] [--recipe digits] [--quick]

Each run is a process of its own in an empty folder, with a seed of its own. Targets of `digits`: three minutes, of
which `evaluate` takes one at most; reconstruction 33 dB; class accuracy of samples 98 %; Fréchet distance at most 1.5
times that of the real held-out split; no more near copies than in that split. Targets of `digits_vq_ar` and
`digits_fsq_maskgit`: four minutes; class accuracy 97 %; distance at most twice that of the held-out split; codebook
usage 90 %.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quality_runs import ROOT, quick_overrides, seconds_of_stages


def run(recipe: str, overrides: list[str], folder: str) -> tuple[float, dict[str, dict[str, Any]], dict[str, float]]:
    """Seconds of the whole command in `folder`, the report's numbers, and the seconds of each stage by its artefact."""
    command = [sys.executable, str(ROOT / "run.py"), "all", recipe, *overrides]
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    seconds = time.monotonic() - started
    run_folder = Path(folder, "runs", recipe)
    numbers = json.loads((run_folder / "report" / "metrics.json").read_text())
    return seconds, numbers, seconds_of_stages(run_folder)


def quantities(seconds: float, numbers: dict[str, dict[str, Any]], stages: dict[str, float]) -> dict[str, float]:
    """The rows of the table, by caption."""
    values = {
        "seconds": seconds,
        "seconds of evaluate": stages["report"],
        "PSNR, dB": numbers["psnr"]["value"],
        "class accuracy": numbers["class_accuracy"]["value"],
        "class accuracy, held-out images": numbers["class_accuracy"]["held_out"],
        "Fréchet distance, classifier features": numbers["fd_classifier"]["value"],
        "Fréchet distance, held-out images": numbers["fd_classifier"]["held_out"],
        "ratio of the two distances": numbers["fd_classifier"]["ratio"],
        "near copies, pixels": numbers["near_copies_pixels"]["value"],
        "near copies, classifier features": numbers["near_copies_classifier"]["value"],
        "the same, held-out images": numbers["near_copies_classifier"]["held_out"],
    }
    usage = {"codebook usage": numbers["code_usage"]["value"]} if "code_usage" in numbers else {}
    return values | usage


def print_stages(seed: int, seconds: float, stages: dict[str, float]) -> None:
    print(f"seed {seed}: {seconds:.0f} s; " + ", ".join(f"{k} {v:.0f} s" for k, v in stages.items()), flush=True)


def print_medians(rows: list[dict[str, float]]) -> None:
    print(f"\n{'median of ' + str(len(rows)) + ' runs':<42}{'median':>9}{'lowest ... highest':>24}")
    for name in rows[0]:
        values = sorted(row[name] for row in rows)
        print(f"{name:<42}{statistics.median(values):>9.4g}{values[0]:>12.4g} ... {values[-1]:.4g}")


def create_parser(description: str, recipe: str) -> argparse.ArgumentParser:
    """The arguments of a benchmark that runs `recipe`, unless another is named, once per seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--recipe", default=recipe)
    parser.add_argument(
        "--quick", action="store_true", help="two steps of every training, to see that all runs; numbers mean nothing"
    )
    return parser


def run_seeds(arguments: argparse.Namespace, measure: Callable[[int, Path, dict], dict[str, float]]) -> None:
    """Run the recipe once per seed and print medians; `measure` adds to each row, by seed, the run and its report."""
    short, rows = quick_overrides(arguments.recipe) if arguments.quick else [], []
    for seed in range(arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            seconds, numbers, stages = run(arguments.recipe, [f"seed={seed}", *short], folder)
            more = measure(seed, Path(folder, "runs", arguments.recipe), numbers)
        rows.append(quantities(seconds, numbers, stages) | more)
        print_stages(seed, seconds, stages)
    print_medians(rows)


def main() -> None:
    run_seeds(create_parser(__doc__, "digits").parse_args(), lambda seed, folder, numbers: {})


if __name__ == "__main__":
    main()
