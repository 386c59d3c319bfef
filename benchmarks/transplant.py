"""Measures on the digits how a trained generator continues on the codes of another tokenizer, by the way of its rows.

    python benchmarks/transplant.py [--seeds 3] [--workers 2] [--folder runs/transplant]

A tokenizer of 128 codes and a generator of its ids are trained by the recipe `digits_vq_ar`, for 500 and 600 steps, and
a second tokenizer of 192 codes with another seed. Then the generator is tuned on the codes of the second one for 120
steps of batch 32 by the recipe `digits_transplant`, by every way of a transplant.

The loss is that of the codes of 128 held-out pictures: before the first step, after a tenth of the steps and after the
last one (average weights). Means and spread (standard deviation) over seeds. Every experiment runs in one process on
one thread; one that has finished in FOLDER is not run again.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from quality_runs import (
    Experiment,
    Results,
    create_parser,
    experiment_folder,
    mean_and_spread,
    parse_arguments,
    print_tables,
    run_experiments,
    select,
)

STEPS, CODES = 120, 192
BEFORE, AFTER = {"codes": "the first"}, {"codes": "others"}
TOKENIZER = ("tokenizer.phases.main.loop.steps=500",)
VARIANTS = {way: (f"generator.start.transplant={way}",) for way in ("nearest", "weighted", "mean", "random")}


def trained(seed: int) -> Experiment:
    """The generator, on the first codes."""
    overrides = (*TOKENIZER, "generator.loop.steps=600")
    return Experiment("digits_vq_ar", BEFORE, seed, overrides, {"trained": ()}, last_stage="train_generator")


def tuned(folder: Path, seed: int) -> Experiment:
    """On the codes of the second tokenizer, by every way."""
    run = experiment_folder(folder, BEFORE, seed) / "runs" / "digits_vq_ar"
    overrides = (
        *(*TOKENIZER, f"seed={100 + seed}", f"generator.start.folder={run}", f"generator.loop.steps={STEPS}"),
        "generator.loop.batch=32",
        f"generator.loop.early_stop={{every: {STEPS // 10}, patience: {STEPS}}}",
    )
    return Experiment("digits_transplant", AFTER, seed, overrides, VARIANTS, last_stage="train_generator")


def table(results: Results) -> Iterator[str]:
    steps = (0, STEPS // 10, STEPS)
    titles = [f"held-out loss after {step} steps" for step in steps]
    yield f"| rows of {CODES} codes (log {CODES} is {math.log(CODES):.3f}) | {' | '.join(titles)} |"
    yield "|---|---|---|---|"
    for name in VARIANTS:
        losses = [result["losses"] for result in select(results, AFTER | {"variant": name})]
        cells = [mean_and_spread(each[str(step)] for each in losses) for step in steps]
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    arguments = parse_arguments(create_parser(__doc__, "runs/transplant", 3, ["tuned"]))
    seeds = range(arguments.seeds)
    run_experiments([trained(seed) for seed in seeds], arguments)
    results = run_experiments([tuned(arguments.folder, seed) for seed in seeds], arguments)
    print_tables({"tuned": [table]}, arguments.parts, results)


if __name__ == "__main__":
    main()
