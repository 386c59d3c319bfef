"""Prints the memory per GPU of every recipe of published size as a table of Markdown, as `check` measures it.

    python benchmarks/memory.py [--processes 8] [--limit 80] [RECIPE ...]

Activations are of one training step on tensors without content, so that it runs on any machine, in half a minute a
recipe. The last column is the smallest `loop.accumulate` with which a training fits `limit` GB per GPU; a * marks one
that is larger than the recipe's own.
"""

import argparse

from pipeline.checks.line import CLASSES
from pipeline.checks.machine import in_bytes
from pipeline.checks.recipe import check_recipe
from pipeline.planning.needs import TrainingNeeds, needs_of
from pipeline.recipes.files import names
from pipeline.recipes.schema import load

HEAD = "| recipe | training | batch | weights, optimiser | activations per image | per GPU | accumulate | fits with |"


def row(recipe: str, needs: TrainingNeeds, processes: int, limit: float) -> str:
    """One training; what was not measured is said in its place."""
    batch, given = needs.loop.batch, needs.loop.accumulate
    if not needs.players or needs.step is None:
        return f"| {recipe} | {needs.place} | {batch} | {needs.note} | | | {given} | |"
    fitting = needs.fitting(processes, limit * 1e9)
    mark = "*" if fitting is not None and fitting > given else ""
    cells = [in_bytes(needs.held(processes)), in_bytes(needs.step.per_image), in_bytes(needs.memory(processes))]
    fits = "none" if fitting is None else f"{fitting}{mark}"
    return f"| {recipe} | {needs.place} | {batch} | {' | '.join(cells)} | {given} | {fits} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--limit", type=float, default=80.0, help="GB per GPU")
    parser.add_argument("recipes", nargs="*")
    options = parser.parse_args()
    print(HEAD, "|---|---|---|---|---|---|---|---|", sep="\n", flush=True)
    for name in options.recipes or [name for name in names() if name.startswith("imagenet256")]:
        recipe = load(name)
        checked = check_recipe(recipe)
        classes = CLASSES if recipe.generator.condition == "class" else 0
        for needs in needs_of(recipe, checked, classes):
            print(row(name, needs, options.processes, options.limit), flush=True)


if __name__ == "__main__":
    main()
