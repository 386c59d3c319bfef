"""Measures on the digits what perturbed tokenizers and post-trained decoders are worth to every family of generators.

    python benchmarks/posttraining.py [--seeds 5] [--workers 2] [--folder runs/posttraining] [--parts remedies ...]

`remedies`: tokenizer plain, perturbed, perturbed and annealed x decoder post-trained or not x generator next-token,
masked, flow. They are the recipes digits_robust_ar, _maskgit and _flow with codes four times as fine (8x8) and smaller
or shorter trainings of generators: with the recipes' own, samples of digits are nearly as near to the training images
as held-out ones, and no remedy has room. `settings`: the share preserved, the number of pairs, the steps, the share
rehearsed and the route, each changed alone, for next-token and flow. `tokenizers`: how PSNR, the distance of
reconstructions and pFID of differing tokenizers go with the distance of what is generated on them.

Before and after post-training the same codes are decoded, so differences are paired: they are shown with the spread
(standard deviation) over seeds. Distances are Frechet distances in features of a classifier of the real training
images. Every line runs in one process on one thread; what is finished in FOLDER is not run again, and the tables are of
all that is there.
"""

import itertools
import statistics
from collections.abc import Iterable, Iterator

from quality_runs import (
    BySeed,
    Line,
    Rows,
    Tables,
    change,
    mean,
    parser_of,
    pick,
    print_tables,
    rank_correlation,
    rows_in,
    run_all,
)

GENERATORS = {"next-token": "digits_robust_ar", "masked": "digits_robust_maskgit", "flow": "digits_robust_flow"}
PERTURBATION = "tokenizer.phases.main.perturbation"
TOKENIZERS = {
    "plain": (f"{PERTURBATION}=null",),
    "perturbed": (f"{PERTURBATION}.anneal=null",),
    "annealed": (f"{PERTURBATION}.anneal={{start: 100, end: 300, to: 0.5}}",),
}
BOTTLENECK = "tokenizer.model.bottleneck"
FINER = ("tokenizer.model.multipliers=[1]", "tokenizer.phases.main.loop.steps=500")
IDS = (*FINER, f"{BOTTLENECK}.vocab=64", f"{BOTTLENECK}.dim=4")
SMALL = ("generator.network.depth=3", "generator.network.width=96", "generator.network.heads=3")
BUDGET = {
    "next-token": (*IDS, *SMALL, "generator.loop.steps=400"),
    "masked": (*IDS, *SMALL, "generator.loop.steps=600"),
    "flow": (*FINER, f"{BOTTLENECK}.dim=4", "generator.loop.steps=500"),
}
OFF, ON = ("posttrain=null",), ()
LOOP = "posttrain.phase.loop"
SETTINGS = {  # one value changed at a time, first where the same pairs serve; the recipes' own are the remedies'
    "steps": {str(steps): (f"{LOOP}.steps={steps}",) for steps in (100, 1000)},
    "rehearsal": {str(share): (f"posttrain.rehearsal={share}",) for share in (0.0, 0.5)},
    "preserve": {str(share): (f"posttrain.preserve={share}",) for share in (0.5, 0.65, 0.8, 0.95)},
    "route": {"reencode": ("posttrain.route=reencode",)},
    "pairs": {str(count): (f"posttrain.pairs={count}",) for count in (500, 4000)},
}
DIFFERING = {  # beside those of the remedies
    "32 codes": (f"{BOTTLENECK}.vocab=32",),
    "256 codes": (f"{BOTTLENECK}.vocab=256",),
    "unit norm": (f"{BOTTLENECK}.unit_norm=true",),
    "8 channels": (f"{BOTTLENECK}.dim=8",),
    "a third of the steps": ("tokenizer.phases.main.loop.steps=167",),
    "pixels alone": ("tokenizer.phases.main.losses.perceptual=null", "tokenizer.phases.main.weights.perceptual=null"),
}


def lines(parts: Iterable[str], generators: Iterable[str], seeds: int) -> Iterator[Line]:
    """Those that are asked for, seed by seed, so that what is stopped early has a few seeds of all."""
    for seed in range(seeds):
        for generator, (tokenizer, changes) in itertools.product(generators, TOKENIZERS.items()):
            settled = "settings" in parts and tokenizer == "annealed" and generator != "masked"
            compared = "tokenizers" in parts and generator == "next-token"
            variants = {"off": OFF} if "remedies" in parts or settled or compared else {}
            variants |= {"on": ON} if "remedies" in parts or settled else {}
            if settled:
                variants |= {f"{key}={name}": new for key, of in SETTINGS.items() for name, new in of.items()}
            if variants:
                yield line(generator, tokenizer, seed, changes, variants)
        for name, changes in DIFFERING.items() if "tokenizers" in parts else ():
            yield line("next-token", name, seed, (*TOKENIZERS["plain"], *changes), {"off": OFF})


def line(
    generator: str, tokenizer: str, seed: int, changes: tuple[str, ...], variants: dict[str, tuple[str, ...]]
) -> Line:
    """The masked generator learns the codes of the tokenizer that the next-token line of the seed has trained."""
    facts = {"generator": generator, "tokenizer": tokenizer}
    overrides = ("evaluate.perturbed=true", *BUDGET[generator], *changes)
    other = facts | {"generator": "next-token"} if generator == "masked" else None
    return Line(
        GENERATORS[generator],
        facts,
        seed,
        overrides,
        variants,
        borrowed=other,
        borrowed_recipe=GENERATORS["next-token"],
    )


def before_and_after(
    rows: Rows, key: str, at: dict[str, str], scale: float = 1.0, variant: str = "on"
) -> tuple[BySeed, BySeed]:
    """One number without post-training and with that of `variant`, of the seeds that have both."""
    before, after = (pick(rows, key, scale, variant=name, **at) for name in ("off", variant))
    seeds = sorted(before.keys() & after.keys())
    return {seed: before[seed] for seed in seeds}, {seed: after[seed] for seed in seeds}


def remedies_table(rows: Rows) -> Iterator[str]:
    yield "| generator, tokenizer | distance | after post-training | change | accuracy, % | change | PSNR | change |"
    yield "|---|---|---|---|---|---|---|---|"
    numbers = (("fd_classifier", 1, 3), ("class_accuracy", 100, 1), ("psnr", 1, 2))
    for name, at in remedies(rows):
        cells = []
        for key, scale, digits in numbers:
            off, on = before_and_after(rows, key, at, scale)
            cells += [mean(off.values(), digits)]
            cells += [mean(on.values(), digits)] if key == "fd_classifier" else []
            cells += [change(off, on, digits)]
        yield f"| {name} | {' | '.join(cells)} |"


def perturbed_table(rows: Rows) -> Iterator[str]:
    yield "| generator, tokenizer | pFID | after post-training | distance of reconstructions | after |"
    yield "|---|---|---|---|---|"
    for name, at in remedies(rows):
        found = [by for key in ("pfd_classifier", "rfd_classifier") for by in before_and_after(rows, key, at)]
        yield f"| {name} | {' | '.join(mean(by.values()) for by in found)} |"


def remedies(rows: Rows) -> Iterator[tuple[str, dict[str, str]]]:
    """Names of the lines of which a seed is finished, and where they are in the rows."""
    for generator, tokenizer in itertools.product(GENERATORS, TOKENIZERS):
        at = {"generator": generator, "tokenizer": tokenizer}
        if before_and_after(rows, "psnr", at)[1]:
            yield f"{generator}, {tokenizer}", at


def settings_table(rows: Rows) -> Iterator[str]:
    """A row a setting: what post-training changes by it, and seconds of a thread."""
    generators = ("next-token", "flow")
    heads = [f"{generator}: distance | PSNR, dB | s of pairs, of training" for generator in generators]
    yield f"| setting | {' | '.join(heads)} |"
    yield "|---|" + "---|" * 3 * len(generators)
    names = {"on": "as in the recipe"}
    names |= {f"{key}={name}": f"{key} {name}" for key, of in SETTINGS.items() for name in of}
    for variant, name in names.items():
        cells = [cell for generator in generators for cell in settled(rows, generator, variant)]
        if any(cells):
            yield f"| {name} | {' | '.join(cells)} |"


def settled(rows: Rows, generator: str, variant: str) -> list[str]:
    """Three cells, empty where nothing is measured."""
    at = {"generator": generator, "tokenizer": "annealed"}
    costs = [row["posttraining"]["cost"] for row in rows if row.items() >= (at | {"variant": variant}).items()]
    if not costs:
        return [""] * 3
    numbers = (("fd_classifier", 3), ("psnr", 2))
    cells = [change(*before_and_after(rows, key, at, 1, variant), digits) for key, digits in numbers]
    seconds = [statistics.median(cost[k] for cost in costs) for k in ("seconds_of_pairs", "seconds_of_training")]
    return [*cells, f"{seconds[0]:.0f}, {seconds[1]:.0f}"]


def tokenizers_table(rows: Rows) -> Iterator[str]:
    """A row a tokenizer, then how the ranks of each number and of the distance go together (Spearman)."""
    keys = {"psnr": "PSNR, dB", "rfd_classifier": "distance of reconstructions", "pfd_classifier": "pFID"}
    yield f"| tokenizer | {' | '.join(keys.values())} | distance of samples |"
    yield "|---|---|---|---|---|"
    means: dict[str, list[float]] = {key: [] for key in (*keys, "fd_classifier")}
    for name in (*TOKENIZERS, *DIFFERING):
        at = {"generator": "next-token", "tokenizer": name, "variant": "off"}
        found = {key: pick(rows, key, **at).values() for key in means}
        if found["psnr"]:
            yield f"| {name} | " + " | ".join(mean(values) for values in found.values()) + " |"
            for key, values in found.items():
                means[key].append(statistics.mean(values))
    if len(means["psnr"]) > 2:
        target = means.pop("fd_classifier")
        ranks = [f"{rank_correlation(values, target):+.2f}" for values in means.values()]
        yield f"| rank correlation of the means with the last column | {' | '.join(ranks)} | |"
        yield f"| the same within a seed | {' | '.join(within_seeds(rows, key) for key in keys)} | |"


def within_seeds(rows: Rows, key: str) -> str:
    """Rank correlation of a number with distances over the tokenizers of one seed: mean and spread over seeds."""
    at = {"generator": "next-token", "variant": "off"}
    found: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if row.items() >= at.items():
            found.setdefault(row["seed"], []).append((row[key], row["fd_classifier"]))
    return mean([rank_correlation(*map(list, zip(*pairs))) for pairs in found.values() if len(pairs) > 2], 2)


def main() -> None:
    tables: Tables = {
        "remedies": [remedies_table, perturbed_table],
        "settings": [settings_table],
        "tokenizers": [tokenizers_table],
    }
    parser = parser_of(__doc__, "runs/posttraining", 5, tables)
    parser.add_argument("--generators", nargs="+", choices=GENERATORS, default=list(GENERATORS))
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    run_all(list(lines(arguments.parts, arguments.generators, arguments.seeds)), folder, arguments.workers)
    print_tables(tables, arguments.parts, rows_in(folder))


if __name__ == "__main__":
    main()
