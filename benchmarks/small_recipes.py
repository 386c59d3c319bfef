"""Runs every small recipe, each published method on the digits, to its end, and prints their results as tables.

    python benchmarks/small_recipes.py [--seeds 1] [--workers 2] [--folder runs/small_recipes] [--only digits_rae ...]

Each recipe runs on one thread while others run beside it, so seconds are those of one core of a busy machine. The
Fréchet distance is of the samples in the features of a classifier of the real training split, as a multiple of that of
the real held-out digits. After the table of all results come rows to paste into the tables of docs/recipes.md and
README.md: method, paper and published numbers as these pages have them, results as medians over the seeds.
"""

import statistics
from collections.abc import Callable, Iterator

from quality_runs import ROOT, Experiment, Results, create_parser, parse_arguments, print_tables, run_experiments

SMALL = sorted(path.stem for path in ROOT.glob("configs/digits*.yaml"))
COLUMNS: dict[str, tuple[str, Callable[[dict], float]]] = {  # name, format and value
    "PSNR, dB": (".1f", lambda result: result["psnr"]),
    "class accuracy, %": (".1f", lambda result: 100 * result["class_accuracy"]),
    "distance, × held-out": (".2f", lambda result: result["fd_classifier"] / result["held_out"]),
    "near copies, %": (".1f", lambda result: 100 * result["near_copies_classifier"]),
    "training of the generator, s": (".0f", lambda result: result["seconds"]),
    "all stages, s of one core": (".0f", lambda result: sum(result["seconds_of_stages"].values())),
}


def results_table(results: Results) -> Iterator[str]:
    """Medians, with the range in brackets where there are several seeds."""
    yield f"| recipe | {' | '.join(COLUMNS)} |"
    yield f"|---|{'---|' * len(COLUMNS)}"
    for recipe, of_recipe in by_recipe(results):
        cells = [median_and_range([value(one) for one in of_recipe], form) for form, value in COLUMNS.values()]
        yield f"| `{recipe}` | {' | '.join(cells)} |"


def recipes_page_rows(results: Results) -> Iterator[str]:
    """Rows of the table in docs/recipes.md."""
    yield "docs/recipes.md:"
    for recipe, of_recipe in by_recipe(results):
        psnr, accuracy, distance, _, _, seconds = medians(of_recipe)
        ours = f"{psnr} dB, {accuracy} %, {distance}"
        described = page_cells("docs/recipes.md", recipe, 4)
        yield f"| {' | '.join([*described[:4], ours, f'{seconds} s of one core', 'trained'])} |"


def readme_rows(results: Results) -> Iterator[str]:
    """Rows of the table in README.md."""
    yield "README.md:"
    for recipe, of_recipe in by_recipe(results):
        psnr, accuracy, distance, *_ = medians(of_recipe)
        described = page_cells("README.md", recipe, 8)
        yield f"| {' | '.join([*described[:3], f'{psnr} dB', f'{accuracy} %', distance, *described[6:]])} |"


def page_cells(page: str, recipe: str, count: int) -> list[str]:
    """The cells of a recipe's row as the page has it; without such a row its name and empty cells, `count` in all."""
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith(f"| `{recipe}` |"):
            return [cell.strip() for cell in line.strip().strip("|").split("|")]
    return [f"`{recipe}`", *[""] * (count - 1)]


def by_recipe(results: Results) -> Iterator[tuple[str, Results]]:
    """The results of each small recipe that has any."""
    for recipe in SMALL:
        if of_recipe := [result for result in results if result["recipe"] == recipe]:
            yield recipe, of_recipe


def medians(results: Results) -> list[str]:
    """Of every column."""
    return [f"{statistics.median(value(one) for one in results):{form}}" for form, value in COLUMNS.values()]


def median_and_range(values: list[float], form: str) -> str:
    median = f"{statistics.median(values):{form}}"
    return median if len(values) == 1 else f"{median} ({min(values):{form}} ... {max(values):{form}})"


def experiments(recipes: list[str], seeds: int) -> list[Experiment]:
    return [
        Experiment(name, {"recipe": name}, seed, (), {"as it is": ()}, last_stage="publish")
        for seed in range(seeds)
        for name in recipes
    ]


def main() -> None:
    parser = create_parser(__doc__, "runs/small_recipes", 1, ["recipes"])
    parser.add_argument("--only", nargs="+", choices=SMALL, default=SMALL, metavar="RECIPE")
    arguments = parse_arguments(parser)
    results = run_experiments(experiments(arguments.only, arguments.seeds), arguments)
    print_tables({"recipes": [results_table, recipes_page_rows, readme_rows]}, arguments.parts, results)


if __name__ == "__main__":
    main()
