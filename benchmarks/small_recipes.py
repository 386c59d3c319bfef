"""Runs every small recipe, each published method on the digits, to its end, and prints what each is worth as a table.

    python benchmarks/small_recipes.py [--seeds 1] [--workers 2] [--folder runs/small_recipes] [--only digits_rae ...]

Each runs in one thread beside the others, so seconds are those of a busy machine. The Fréchet distance is of 359
samples in the features of a classifier of the real training split, as a multiple of that of the real held-out digits.
"""

import statistics
from collections.abc import Iterator

from quality_runs import ROOT, Line, Rows, parser_of, print_tables, rows_in, run_all

SMALL = sorted(path.stem for path in ROOT.glob("configs/digits*.yaml"))
COLUMNS = {  # of the table, and how each is written
    "PSNR, dB": (".1f", lambda row: row["psnr"]),
    "class accuracy, %": (".1f", lambda row: 100 * row["class_accuracy"]),
    "distance to held-out's": (".2f", lambda row: row["fd_classifier"] / row["held_out"]),
    "near copies, %": (".1f", lambda row: 100 * row["near_copies_classifier"]),
    "training of the generator, s": (".0f", lambda row: row["seconds"]),
}


def table(rows: Rows) -> Iterator[str]:
    """Medians, with the range in brackets where there are several seeds."""
    yield f"| recipe | {' | '.join(COLUMNS)} |"
    yield f"|---|{'---|' * len(COLUMNS)}"
    for recipe in SMALL:
        found = [row for row in rows if row["recipe"] == recipe]
        if found:
            cells = [written([value(row) for row in found], form) for form, value in COLUMNS.values()]
            yield f"| `{recipe}` | {' | '.join(cells)} |"


def written(values: list[float], form: str) -> str:
    median = f"{statistics.median(values):{form}}"
    return median if len(values) == 1 else f"{median} ({min(values):{form}} ... {max(values):{form}})"


def main() -> None:
    parser = parser_of(__doc__, "runs/small_recipes", 1, ["recipes"])
    parser.add_argument("--only", nargs="+", choices=SMALL, default=SMALL, metavar="RECIPE")
    arguments = parser.parse_args()
    seeds, folder = range(arguments.seeds), arguments.folder.resolve()
    lines = [Line(name, {"recipe": name}, seed, (), {"as it is": ()}) for seed in seeds for name in arguments.only]
    run_all(lines, folder, arguments.workers)
    print_tables({"recipes": [table]}, arguments.parts, rows_in(folder))


if __name__ == "__main__":
    main()
