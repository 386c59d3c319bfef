"""Runs every small recipe, each published method on the digits, to its end, and prints what each is worth as a table.

    python benchmarks/small_recipes.py --folder small_recipes [--seeds 1] [--only digits_rae digits_svg] [--workers 2]

A recipe is run by `python run.py all`, as its user would, in a folder of its own; what is finished is not run again.
Each worker has an equal share of the cores, so seconds are those of a busy machine. The Fréchet distance is of 359
samples in the features of a classifier of the real training split, as a multiple of that of real held-out digits.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = {
    "seconds, all stages": ".0f",
    "PSNR, dB": ".1f",
    "class accuracy, %": ".1f",
    "distance / held-out": ".2f",
    "near copies, %": ".1f",
}


def run(recipe: str, seed: int, folder: Path, threads: int) -> dict[str, float]:
    """The numbers of a finished run, which is made where it is not there."""
    place = folder / recipe / str(seed)
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "run.py"), "all", recipe, f"seed={seed}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    with open(place / "log.txt", "a") as log:
        subprocess.run(command, cwd=place, env=environment, check=True, stdout=log, stderr=log)
    made = place / "runs" / recipe
    found = json.loads((made / "report" / "metrics.json").read_text())
    seconds = [json.loads(note.read_text())["seconds"] for note in made.glob("*/made_from.json")]
    values = (
        sum(seconds),
        found["psnr"]["value"],
        100 * found["class_accuracy"]["value"],
        found["fd_classifier"]["ratio"],
        100 * found["near_copies_classifier"]["value"],
    )
    return dict(zip(COLUMNS, values))


def spread(values: list[float], form: str) -> str:
    """The median, and between brackets the lowest and the highest where there are several."""
    median = f"{statistics.median(values):{form}}"
    return median if len(values) == 1 else f"{median} ({min(values):{form}} ... {max(values):{form}})"


def main() -> None:
    small = sorted(path.stem for path in ROOT.glob("configs/digits*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=small, choices=small, metavar="RECIPE")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // arguments.workers)
    rows: dict[str, list[dict[str, float]]] = {}
    with ThreadPoolExecutor(arguments.workers) as pool:
        todo = {
            pool.submit(run, recipe, seed, arguments.folder.resolve(), threads): (recipe, seed)
            for seed in range(arguments.seeds)
            for recipe in arguments.only
        }
        for done in as_completed(todo):
            recipe, seed = todo[done]
            try:
                rows.setdefault(recipe, []).append(done.result())
                print(f"{recipe}, seed {seed}: done", flush=True)
            except subprocess.CalledProcessError:
                print(f"{recipe}, seed {seed}: failed, see log.txt in its folder", flush=True)
    print(f"\n| recipe | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for recipe, found in sorted(rows.items()):
        cells = [spread([row[name] for row in found], form) for name, form in COLUMNS.items()]
        print(f"| `{recipe}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
