"""Measures the effect of perturbed tokenizers and post-trained decoders, for every family of generators.

    python benchmarks/posttraining.py [--data digits] [--seeds 5] [--workers 2] [--folder ...] [--parts remedies ...]
    python benchmarks/posttraining.py --data emoji32 --parts remedies control

`remedies`: tokenizer plain, perturbed, perturbed and annealed x decoder post-trained or not x generator next-token,
masked, flow. They are the recipes digits_robust_ar, _maskgit and _flow with codes of four times as many tokens (8x8)
and generators that are smaller or trained for fewer steps: with the recipes' own, samples are nearly as close to the
training images as held-out digits are, which leaves nothing to improve. The recipes of emoji32 are trained for fewer
steps, and keep the decoder after the last step. `settings`: the fraction preserved, the number of pairs, the steps, the
fraction rehearsed and the route, each changed alone, for next-token and flow. `control`: the decoder trained as long by
reconstruction alone, without pairs, which tells what of the gain is further training. `tokenizers`: how PSNR, the
distance of reconstructions and pFID correlate, over different tokenizers, with the distance of samples.

The same codes are decoded before and after post-training, so differences are paired: means and spread (standard
deviation) over seeds. Distances are Fréchet distances in the features of a classifier of the real training images.
Every experiment runs in one process on one thread; one that has finished in FOLDER is not run again, and the tables
are of all results there.
"""

import itertools
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from quality_runs import (
    BySeed,
    Experiment,
    Results,
    Tables,
    TokenizerSource,
    create_parser,
    mean_and_spread,
    mean_difference,
    parse_arguments,
    print_tables,
    rank_correlation,
    run_experiments,
    select,
    values_by_seed,
)

GENERATORS = {"next-token": "robust_ar", "masked": "robust_maskgit", "flow": "robust_flow"}  # ends of recipes' names
TOKENIZERS = ("plain", "perturbed", "annealed")
PERTURBATION = "tokenizer.phases.main.perturbation"
BOTTLENECK = "tokenizer.model.bottleneck"
TOKENIZER_STEPS = "tokenizer.phases.main.loop.steps"
FINER = ("tokenizer.model.multipliers=[1]", f"{TOKENIZER_STEPS}=500")
IDS = (*FINER, f"{BOTTLENECK}.vocab=64", f"{BOTTLENECK}.dim=4")
SHORT = (f"{TOKENIZER_STEPS}=600", "posttrain.keep=last")
SMALL = ("generator.network.depth=3", "generator.network.width=96", "generator.network.heads=3")


@dataclass(frozen=True)
class Changes:
    """What a collection's recipes are given in place of their own values."""

    generators: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by family, in all its experiments
    annealed: tuple[str, ...] = ()

    def of_tokenizer(self, name: str) -> tuple[str, ...]:
        return {"plain": (f"{PERTURBATION}=null",), "perturbed": (f"{PERTURBATION}.anneal=null",)}.get(
            name, self.annealed
        )


CHANGES = {
    "digits": Changes(
        {
            "next-token": (*IDS, *SMALL, "generator.loop.steps=400"),
            "masked": (*IDS, *SMALL, "generator.loop.steps=600"),
            "flow": (*FINER, f"{BOTTLENECK}.dim=4", "generator.loop.steps=500"),
        },
        (f"{PERTURBATION}.anneal={{start: 100, end: 300, to: 0.5}}",),
    ),
    "emoji32": Changes(
        {
            "next-token": (*SHORT, "generator.loop.steps=300"),
            "masked": (*SHORT, "generator.loop.steps=400"),
            "flow": (*SHORT, "generator.loop.steps=1000"),
        },
        (f"{PERTURBATION}.anneal={{start: 150, end: 450, to: 0.5}}",),
    ),
}
OFF, ON = ("posttrain=null",), ()
LOOP = "posttrain.phase.loop"
SETTINGS = {  # one value changed at a time, those that reuse the same pairs first; the recipes' own are in `remedies`
    "steps": {str(steps): (f"{LOOP}.steps={steps}",) for steps in (100, 1000)},
    "rehearsal": {str(fraction): (f"posttrain.rehearsal={fraction}",) for fraction in (0.0, 0.5)},
    "preserve": {str(fraction): (f"posttrain.preserve={fraction}",) for fraction in (0.5, 0.65, 0.8, 0.95)},
    "route": {"reencode": ("posttrain.route=reencode",)},
    "pairs": {str(count): (f"posttrain.pairs={count}",) for count in (500, 4000)},
}
CONTROL = "without pairs"
NO_PAIRS = ("posttrain.rehearsal=0.999999",)  # one pair in a million images
OTHER_TOKENIZERS = {  # beside those of `remedies`
    "32 codes": (f"{BOTTLENECK}.vocab=32",),
    "256 codes": (f"{BOTTLENECK}.vocab=256",),
    "unit norm": (f"{BOTTLENECK}.unit_norm=true",),
    "8 channels": (f"{BOTTLENECK}.dim=8",),
    "a third of the steps": ("tokenizer.phases.main.loop.steps=167",),
    "pixels alone": ("tokenizer.phases.main.losses.perceptual=null", "tokenizer.phases.main.weights.perceptual=null"),
}


def experiments(
    data: str, parts: Iterable[str], generators: Iterable[str], tokenizers: Iterable[str], seeds: int
) -> Iterator[Experiment]:
    """Seed by seed, so that a benchmark that is stopped early has the first seeds of all experiments; in a seed the
    masked generators come last, when the tokenizers that they share are likely to be there.
    """
    for seed in range(seeds):
        for generator, tokenizer in itertools.product(sorted(generators, key="masked".__eq__), tokenizers):
            swept = "settings" in parts and tokenizer == "annealed" and generator != "masked"
            ranked = "tokenizers" in parts and generator == "next-token"
            compared = "remedies" in parts or "control" in parts or swept
            variants = {"off": OFF} if compared or ranked else {}
            variants |= {"on": ON} if compared else {}
            variants |= {CONTROL: NO_PAIRS} if "control" in parts else {}
            if swept:
                variants |= {f"{key}={name}": new for key, values in SETTINGS.items() for name, new in values.items()}
            if variants:
                tags = {"generator": generator, "tokenizer": tokenizer}
                yield experiment(data, tags, seed, CHANGES[data].of_tokenizer(tokenizer), variants)
        for name, changes in OTHER_TOKENIZERS.items() if "tokenizers" in parts else ():
            tags = {"generator": "next-token", "tokenizer": name}
            yield experiment(data, tags, seed, (*CHANGES[data].of_tokenizer("plain"), *changes), {"off": OFF})


def experiment(
    data: str, tags: dict[str, str], seed: int, changes: tuple[str, ...], variants: dict[str, tuple[str, ...]]
) -> Experiment:
    """The masked generator uses the tokenizer that the next-token experiment of the same seed has trained."""
    overrides = ("evaluate.perturbed=true", *CHANGES[data].generators.get(tags["generator"], ()), *changes)
    same = TokenizerSource(recipe_name(data, "next-token"), tags | {"generator": "next-token"})
    source = same if tags["generator"] == "masked" else None
    return Experiment(recipe_name(data, tags["generator"]), tags, seed, overrides, variants, tokenizer_source=source)


def recipe_name(data: str, generator: str) -> str:
    return f"{data}_{GENERATORS[generator]}"


def before_and_after(
    results: Results, key: str, tags: dict[str, str], scale: float = 1.0, variant: str = "on"
) -> tuple[BySeed, BySeed]:
    """One number without post-training and with that of `variant`, for the seeds that have both."""
    before, after = (values_by_seed(results, key, scale, variant=name, **tags) for name in ("off", variant))
    seeds = sorted(before.keys() & after.keys())
    return {seed: before[seed] for seed in seeds}, {seed: after[seed] for seed in seeds}


def remedies_table(results: Results) -> Iterator[str]:
    yield "| generator, tokenizer | distance | after post-training | change | accuracy, % | change | PSNR | change |"
    yield "|---|---|---|---|---|---|---|---|"
    numbers = (("fd_classifier", 1, 3), ("class_accuracy", 100, 1), ("psnr", 1, 2))
    for name, tags in remedies(results):
        cells = []
        for key, scale, digits in numbers:
            off, on = before_and_after(results, key, tags, scale)
            cells += [mean_and_spread(off.values(), digits)]
            cells += [mean_and_spread(on.values(), digits)] if key == "fd_classifier" else []
            cells += [mean_difference(off, on, digits)]
        yield f"| {name} | {' | '.join(cells)} |"


def perturbed_table(results: Results) -> Iterator[str]:
    yield "| generator, tokenizer | pFID | after post-training | distance of reconstructions | after |"
    yield "|---|---|---|---|---|"
    for name, tags in remedies(results):
        pairs = [before_and_after(results, key, tags) for key in ("pfd_classifier", "rfd_classifier")]
        cells = [mean_and_spread(by_seed.values()) for pair in pairs for by_seed in pair]
        yield f"| {name} | {' | '.join(cells)} |"


def control_table(results: Results) -> Iterator[str]:
    """Changes by post-training and by as many steps without pairs, of the seeds that have both."""
    yield "| generator, tokenizer | distance: with pairs | without | PSNR, dB: with pairs | without |"
    yield "|---|---|---|---|---|"
    for name, tags in remedies(results):
        variants = ("on", CONTROL)
        pairs = [before_and_after(results, key, tags, variant=v) for key in ("fd_classifier", "psnr") for v in variants]
        if pairs[1][1]:
            yield f"| {name} | {' | '.join(mean_difference(*pair) for pair in pairs)} |"


def remedies(results: Results) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and tags of each experiment of which a seed has finished."""
    for generator, tokenizer in itertools.product(GENERATORS, TOKENIZERS):
        tags = {"generator": generator, "tokenizer": tokenizer}
        if before_and_after(results, "psnr", tags)[1]:
            yield f"{generator}, {tokenizer}", tags


def settings_table(results: Results) -> Iterator[str]:
    """A row per setting: how post-training with it changes the results, and its seconds on one thread."""
    generators = ("next-token", "flow")
    heads = [f"{generator}: distance | PSNR, dB | seconds of pairs, of training" for generator in generators]
    yield f"| setting | {' | '.join(heads)} |"
    yield "|---|" + "---|" * 3 * len(generators)
    names = {"on": "as in the recipe"}
    names |= {f"{key}={name}": f"{key} {name}" for key, values in SETTINGS.items() for name in values}
    for variant, name in names.items():
        cells = [cell for generator in generators for cell in settings_cells(results, generator, variant)]
        if any(cells):
            yield f"| {name} | {' | '.join(cells)} |"


def settings_cells(results: Results, generator: str, variant: str) -> list[str]:
    """Three cells, empty where there is no result."""
    tags = {"generator": generator, "tokenizer": "annealed"}
    costs = [result["posttraining"]["cost"] for result in select(results, tags | {"variant": variant})]
    if not costs:
        return [""] * 3
    numbers = (("fd_classifier", 3), ("psnr", 2))
    cells = [mean_difference(*before_and_after(results, key, tags, 1, variant), digits) for key, digits in numbers]
    seconds = [statistics.median(cost[k] for cost in costs) for k in ("seconds_of_pairs", "seconds_of_training")]
    return [*cells, f"{seconds[0]:.0f}, {seconds[1]:.0f}"]


def tokenizers_table(results: Results) -> Iterator[str]:
    """A row per tokenizer, then the rank correlation (Spearman) of each number with the distance of samples."""
    keys = {"psnr": "PSNR, dB", "rfd_classifier": "distance of reconstructions", "pfd_classifier": "pFID"}
    yield f"| tokenizer | {' | '.join(keys.values())} | distance of samples |"
    yield "|---|---|---|---|---|"
    means: dict[str, list[float]] = {key: [] for key in (*keys, "fd_classifier")}
    for name in (*TOKENIZERS, *OTHER_TOKENIZERS):
        tags = {"generator": "next-token", "tokenizer": name, "variant": "off"}
        columns = {key: values_by_seed(results, key, **tags).values() for key in means}
        if columns["psnr"]:
            yield f"| {name} | " + " | ".join(mean_and_spread(values) for values in columns.values()) + " |"
            for key, values in columns.items():
                means[key].append(statistics.mean(values))
    if len(means["psnr"]) > 2:
        target = means.pop("fd_classifier")
        ranks = [f"{rank_correlation(values, target):+.2f}" for values in means.values()]
        yield f"| rank correlation of the means with the last column | {' | '.join(ranks)} | |"
        yield f"| the same within a seed | {' | '.join(within_seeds(results, key) for key in keys)} | |"


def within_seeds(results: Results, key: str) -> str:
    """Rank correlation of a number with distances over the tokenizers of one seed: mean and spread over seeds."""
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for result in select(results, {"generator": "next-token", "variant": "off"}):
        by_seed.setdefault(result["seed"], []).append((result[key], result["fd_classifier"]))
    correlations = [rank_correlation(*map(list, zip(*pairs))) for pairs in by_seed.values() if len(pairs) > 2]
    return mean_and_spread(correlations, 2)


def main() -> None:
    tables: Tables = {
        "remedies": [remedies_table, perturbed_table],
        "control": [control_table],
        "settings": [settings_table],
        "tokenizers": [tokenizers_table],
    }
    parser = create_parser(__doc__, "runs/posttraining", 5, tables)
    parser.add_argument("--data", choices=CHANGES, default="digits")
    parser.add_argument("--generators", nargs="+", choices=GENERATORS, default=list(GENERATORS))
    parser.add_argument("--tokenizers", nargs="+", choices=TOKENIZERS, default=list(TOKENIZERS))
    arguments = parse_arguments(parser)
    if arguments.data != "digits" and "tokenizers" in arguments.parts:
        parser.error("the part tokenizers changes those of the digits; state --parts remedies control settings")
    arguments.folder /= arguments.data
    several = arguments.parts, arguments.generators, arguments.tokenizers
    chosen = experiments(arguments.data, *several, arguments.seeds)
    results = run_experiments(list(chosen), arguments)
    print_tables(tables, arguments.parts, results)


if __name__ == "__main__":
    main()
