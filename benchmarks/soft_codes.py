"""Measures on the digits what soft codes, annealed to ids, change in joint training of tokenizer and generator.

    python benchmarks/soft_codes.py [--seeds 3] [--workers 2] [--folder runs/soft_codes]

By the recipe `digits_joint_soft_codes`, shortened: a tokenizer of 500 steps, then 150 steps of both, with batches of
16. The generator reads ids from the start, or mixtures of codes whose temperature falls for 110 steps; by these its
loss also trains the tokenizer, at the weight 0.001.

At the end, by average weights and on 128 held-out pictures whose ids are read: the loss of the generator, the squared
error of pixels as PSNR, and of the last epoch of training pictures the perplexity of the codes. Means and spread
(standard deviation) over seeds. Every experiment runs in one process on one thread; one that has finished in FOLDER is
not run again.
"""

import math
from collections.abc import Iterator

from quality_runs import (
    Experiment,
    Results,
    create_parser,
    mean_and_spread,
    parse_arguments,
    print_tables,
    run_experiments,
    select,
)

STEPS, SOFT_STEPS = 150, 110
TAGS = {"codes": "joint"}
VARIANTS = {
    "ids from the start": ("joint.soft.first=0",),
    "soft, weight 0.001": (),
}


def experiment(seed: int) -> Experiment:
    overrides = (
        *("tokenizer.phases.main.loop.steps=500", f"joint.soft.steps={SOFT_STEPS}"),
        *(f"joint.phase.loop.steps={STEPS}", "joint.phase.loop.batch=16", "joint.phase.loop.warmup=10"),
        *("joint.phase.loop.ema=0.95", f"joint.phase.loop.early_stop={{every: {STEPS // 3}, patience: {STEPS}}}"),
    )
    return Experiment("digits_joint_soft_codes", TAGS, seed, overrides, VARIANTS, last_stage="train_jointly")


def table(results: Results) -> Iterator[str]:
    yield "| the generator reads | its held-out loss | perplexity of the codes | loss - log perplexity | PSNR, dB |"
    yield "|---|---|---|---|---|"
    for name in VARIANTS:
        joint = [result["joint"] for result in select(results, TAGS | {"variant": name})]
        losses = [each["held_out/next_token"] for each in joint]
        perplexities = [each["code_perplexity"] for each in joint]
        apart = [loss - math.log(perplexity) for loss, perplexity in zip(losses, perplexities)]
        psnr = [10 * math.log10(4 / each["held_out/pixel"]) for each in joint]
        cells = [mean_and_spread(losses), mean_and_spread(perplexities, 1), mean_and_spread(apart)]
        yield f"| {name} | {' | '.join([*cells, mean_and_spread(psnr, 2)])} |"


def main() -> None:
    arguments = parse_arguments(create_parser(__doc__, "runs/soft_codes", 3, ["joint"]))
    results = run_experiments([experiment(seed) for seed in range(arguments.seeds)], arguments)
    print_tables({"joint": [table]}, arguments.parts, results)


if __name__ == "__main__":
    main()
