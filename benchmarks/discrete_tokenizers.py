"""Every discrete tokenizer of the small recipes, trained for equal times, with generators of equal size and time.

    python benchmarks/discrete_tokenizers.py [--data digits] [--seeds 3] [--seconds 60] [--workers 2]
        [--folder runs/discrete_tokenizers] [--only digits_vq_ar ...] [--figure quality.png] [--parts quality without]

Each tokenizer is that of the first recipe that trains it, whatever its generator. It is trained for as many seconds of
one core as every other, and so is each generator: `next token`, the same causal transformer for all, and `own`, that
of the recipe, where it is another. A short training of each is timed first (part `speed`), and steps are chosen by its
rate in the stretch that other work on the machine disturbed least. Schedules shrink with the steps.
Part `without` trains four of them once more, for as many steps, without what their papers add for the generator's sake.

PSNR and the first distance are of reconstructions of held-out images, the second is of samples: Fréchet distances in
the features of a classifier of the training images. Seconds of sampling are those of the whole stage `sample`, by one
thread. Bits are those of a code without entropy coding. `--figure` draws the distance of samples over these seconds.
"""

import math
import statistics
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quality_runs import (
    ROOT,
    Experiment,
    Results,
    create_parser,
    mean_and_spread,
    parse_arguments,
    print_tables,
    run_experiments,
    select,
    values_by_seed,
)

Rates = dict[str, dict[str, float]]  # by recipe: steps a second by phase of the tokenizer and by generator

OWN, NEXT_TOKEN = "own", "next token"
NETWORK = {
    **{"kind": "causal_transformer", "depth": 4, "width": 128, "heads": 4, "position": "learned"},
    **{"condition_drop": 0.1, "token_dropout": 0.2, "residual_dropout": 0.2},
}
LOOP = {
    "batch": 64,
    "warmup": 50,
    "schedule": "cosine",
    "weight_decay": 0.05,
    "undecayed": [],
    "clip": 1.0,
    "ema": 0.99,
}
MAIN = "tokenizer.phases.main"
WITHOUT = {  # by recipe of the digits: what the paper adds, and what leaves it out
    "digits_gigatok": ("semantic term", (f"{MAIN}.losses.semantic=null", f"{MAIN}.weights.feature_cosine=null")),
    "digits_fqgan": (
        "disentanglement and teacher",
        (
            f"{MAIN}.losses.semantic=null",
            f"{MAIN}.weights.branch_contrast=null",
            f"{MAIN}.weights.disentangle=0.0",
        ),
    ),
    "digits_larp": (
        "prior",
        ("tokenizer.model.prior_depth=0", f"{MAIN}.weights.prior=null", f"{MAIN}.loop.lr.new=null"),
    ),
    "digits_hita": (
        "three of four holistic ids",
        ("tokenizer.model.bottleneck.first_tokens=1", "tokenizer.model.shift=1"),
    ),
}
TIMED = 40  # steps of the trainings that tell how fast one is
LEAST = 20  # steps
COLUMNS = {  # of a generator's results: the number's name, a scale, digits
    "PSNR, dB": ("psnr", 1, 1),
    "distance of reconstructions": ("rfd_classifier", 1, 2),
    "distance of samples": ("fd_classifier", 1, 2),
    "class accuracy, %": ("class_accuracy", 100, 1),
    "sampling, s": ("sampling", 1, 1),
}


@dataclass(frozen=True)
class System:
    """A discrete tokenizer, by the recipe that it is taken from."""

    recipe: str
    tokens: int
    bits: float
    phases: dict[str, int]  # steps of each phase of the tokenizer's training, as the recipe has them
    variants: dict[str, tuple[str, ...]]  # what makes the recipe's generator the one of this name


def systems(data: str, only: list[str]) -> list[System]:
    """One for each discrete tokenizer of the recipes whose names begin with `data`, sorted by name."""
    from pipeline.recipes.building import plan_tokenizer
    from pipeline.recipes.schema import load

    found, seen = [], []
    for path in sorted(ROOT.glob(f"configs/{data}*.yaml")):
        recipe = load(path.stem)
        if recipe.generator is None or recipe.joint is not None or recipe.text is not None:
            continue
        spec, node = plan_tokenizer(recipe).spec, asdict(recipe.tokenizer)
        if spec.vocab and node not in seen and (not only or path.stem in only):
            seen.append(node)
            phases = {name: phase.loop.steps for name, phase in recipe.tokenizer.phases.items()}
            bits = spec.tokens * spec.codebooks * math.log2(spec.vocab)
            found.append(System(path.stem, spec.tokens, bits, phases, variants_of(recipe)))
    return found


def variants_of(recipe: Any) -> dict[str, tuple[str, ...]]:
    """The generators that the recipe's tokenizer is given; its own needs no changes."""
    generator = recipe.generator
    others = [name for name in generator.weights if name != "next_token"]
    common = (
        f"generator.network={as_setting(NETWORK)}",
        "generator.objective={kind: next_token}",
        f"generator.loop={as_setting(LOOP)}",
        "generator.loop.lr={network: 2.0e-3}",
        *(f"generator.weights.{name}=null" for name in others),
        "generator.weights.next_token=1.0",
        *("sample.sampler=null", "sample.steps=null", "sample.guidance={scale: 1.5, schedule: constant}"),
    )
    kinds = generator.network["kind"], generator.objective["kind"]
    same = kinds == (NETWORK["kind"], "next_token")
    return {NEXT_TOKEN: common} if same else {OWN: (), NEXT_TOKEN: common}


def as_setting(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


def time_trainings(found: list[System], arguments: Namespace) -> Rates:
    """Steps a second of every tokenizer's phases and every generator, of short trainings one after the other."""
    if arguments.quick:  # whose trainings have two steps whatever they are told
        return {system.recipe: dict.fromkeys((*system.phases, *system.variants), 1.0) for system in found}
    chosen = []
    for system in found:
        loops = ("generator.loop", *map(loop_of, system.phases))
        changes = (
            "posttrain=null",
            *(f"{loop}.{value}" for loop in loops for value in (f"steps={TIMED}", "log_every=10")),
        )
        tags = {"part": "speed", "system": system.recipe}
        chosen.append(Experiment(system.recipe, tags, 0, changes, system.variants, last_stage="train_generator"))
    rates: Rates = {}
    for result in select(run_experiments(chosen, Namespace(**vars(arguments) | {"workers": 1})), {"part": "speed"}):
        of_training = result["rates"]
        rates.setdefault(result["system"], {}).update(of_training | {result["variant"]: of_training["generator"]})
    return rates


def loop_of(phase: str) -> str:
    return f"tokenizer.phases.{phase}.loop"


def experiments(
    parts: Iterable[str], found: list[System], rates: Rates, seeds: int, seconds: float
) -> Iterator[Experiment]:
    """Seed by seed, so that a benchmark that is stopped early has the first seeds of all."""
    for seed in range(seeds):
        for system in found:
            changes, variants = equal_times(system, rates[system.recipe], seconds)
            if "quality" in parts:
                yield Experiment(system.recipe, tags_of("quality", system), seed, changes, variants)
            if "without" in parts and system.recipe in WITHOUT:
                _, left_out = WITHOUT[system.recipe]
                kept = {NEXT_TOKEN: variants[NEXT_TOKEN]}
                yield Experiment(system.recipe, tags_of("without", system), seed, (*changes, *left_out), kept)


def tags_of(part: str, system: System) -> dict[str, str]:
    return {"part": part, "system": system.recipe}


def equal_times(
    system: System, rates: dict[str, float], seconds: float
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Overrides by which the tokenizer trains for these seconds, and the variants whose generators do."""
    recipes_own = sum(steps / rates[phase] for phase, steps in system.phases.items())
    shares = {phase: steps * seconds / recipes_own for phase, steps in system.phases.items()}
    changes = ("posttrain=null", *(f"{loop_of(phase)}.steps={count(n)}" for phase, n in shares.items()))
    variants = {
        name: (*settings, f"generator.loop.steps={count(seconds * rates[name])}")
        for name, settings in system.variants.items()
    }
    return changes, variants


def count(steps: float) -> int:
    return max(LEAST, round(steps))


def table(found: list[System], results: Results) -> Iterator[str]:
    """A row for each tokenizer and generator: means and standard deviations over seeds; sorted by distance."""
    yield f"| tokenizer of | generator | tokens | bits | {' | '.join(COLUMNS)} |"
    yield f"|---|---|---|---|{'---|' * len(COLUMNS)}"
    rows = []
    for system in found:
        for variant in system.variants:
            if columns := columns_of(results, system, variant):
                cells = cells_of(columns)
                row = [f"`{system.recipe}`", variant, str(system.tokens), f"{system.bits:.0f}", *cells]
                rows.append((statistics.mean(columns["distance of samples"].values()), f"| {' | '.join(row)} |"))
    yield from (row for _, row in sorted(rows))


def without_table(found: list[System], results: Results) -> Iterator[str]:
    """Two rows for each tokenizer that has a part to leave out: as the paper has it, and without."""
    yield f"| tokenizer of | without | {' | '.join(COLUMNS)} |"
    yield f"|---|---|{'---|' * len(COLUMNS)}"
    for system in found:
        for part in ("quality", "without"):
            columns = columns_of(results, system, NEXT_TOKEN, part)
            if system.recipe in WITHOUT and columns:
                left_out = WITHOUT[system.recipe][0] if part == "without" else ""
                yield f"| `{system.recipe}` | {left_out} | {' | '.join(cells_of(columns))} |"


def cells_of(columns: dict[str, dict[int, float]]) -> list[str]:
    return [mean_and_spread(columns[name].values(), digits) for name, (_, _, digits) in COLUMNS.items()]


def columns_of(results: Results, system: System, variant: str, part: str = "quality") -> dict[str, dict[int, float]]:
    """Each column's values by seed; empty where there is no result yet."""
    tags = tags_of(part, system) | {"variant": variant}
    if not (rows := select(results, tags)):
        return {}
    sampling = {row["seed"]: row["seconds_of_stages"]["samples"] for row in rows}
    columns = {
        name: values_by_seed(results, key, scale, **tags)
        for name, (key, scale, _) in COLUMNS.items()
        if key != "sampling"
    }
    return columns | {"sampling, s": sampling}


def draw(found: list[System], results: Results, figure: Path) -> None:
    """The distance of samples over the seconds of sampling, means over seeds."""
    from pipeline.reporting.plots import Plot, Series, draw_plot

    series = []
    for variant in (NEXT_TOKEN, OWN):
        points = []
        for system in found:
            if columns := columns_of(results, system, variant):
                across, down = (statistics.mean(columns[n].values()) for n in ("sampling, s", "distance of samples"))
                points.append((system.recipe.split("_", 1)[1], across, down))
        if points:
            names, across, down = map(list, zip(*points))
            series.append(Series(f"generator: {variant}", across, down, names))
    draw_plot(Plot("seconds of sampling", "distance of samples", series, True, True), figure)


def main() -> None:
    parser = create_parser(__doc__, "runs/discrete_tokenizers", 3, ["quality", "without"])
    parser.add_argument("--data", default="digits", choices=["digits", "emoji32"])
    parser.add_argument("--seconds", type=float, default=60, help="of one core, of each training")
    parser.add_argument("--only", nargs="+", default=[], metavar="RECIPE")
    parser.add_argument("--figure", type=Path)
    arguments = parse_arguments(parser)
    arguments.folder /= arguments.data
    found = systems(arguments.data, arguments.only)
    rates = time_trainings(found, arguments) if arguments.seeds else {}
    chosen = list(experiments(arguments.parts, found, rates, arguments.seeds, arguments.seconds))
    results = run_experiments(chosen, arguments)
    tables = {"quality": [lambda rows: table(found, rows)], "without": [lambda rows: without_table(found, rows)]}
    print_tables(tables, arguments.parts, results)
    if arguments.figure:
        draw(found, results, arguments.figure)


if __name__ == "__main__":
    main()
