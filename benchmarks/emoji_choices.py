"""What `emoji32` is made of, each choice beside another one: tokenizer, generator, alignment, mirrors, guidance.

    python benchmarks/emoji_choices.py [--seeds 1] [--share 1.0] [--workers 2] [--folder runs/emoji_choices]
        [--parts choices] [--only "latents aligned" ...]

`choices`: the recipe as it is, and with one thing changed: REPA (arXiv:2410.06940) in the generator, its weight chosen
for the digits; the decoder post-trained with the generator's pairs; latents aligned by VA-VAE's terms
(arXiv:2501.01423); mirrored pictures in both trainings; ids in place of continuous codes, with the next-token and the
masked generator of the recipes emoji32_robust_*, their codes neither perturbed nor post-trained. The teacher of
alignment is a classifier of the training pictures, of another seed than the report's. `guidance`: the recipe's
generator sampled at other scales. `--share` takes that share of the steps of tokenizers and generators; `--only`
runs the trainings of these names alone.

Distances are Fréchet distances in the features of the report's classifier; `pixels` needs none. Means and standard
deviation over seeds. Every experiment runs in one process on one thread; one that has finished in FOLDER is not run
again, and the tables are of all results there.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from alignment import REPA, relational
from quality_runs import (
    Experiment,
    Results,
    create_parser,
    mean_and_spread,
    parse_arguments,
    print_tables,
    run_experiments,
    values_by_seed,
)

AS_IT_IS = "as in the recipe"
IDS = ("tokenizer.phases.main.perturbation=null", "posttrain=null")
POST_TRAINED = "decoder post-trained"
GUIDANCE = (1.0, 1.5, 2.5, 3.0)  # the recipe's own is 2
CHANGES = {"latents aligned": relational(0.1), "mirrored pictures": ("data.flip=true", "latents.flip=true")}
OTHERS = {  # another recipe in place of emoji32
    "ids, next-token": "emoji32_robust_ar",
    "ids, masked": "emoji32_robust_maskgit",
}
COLUMNS = {  # the number's name, a scale, digits
    "PSNR, dB": ("psnr", 1, 1),
    "distance of samples": ("fd_classifier", 1, 2),
    "of reconstructions": ("rfd_classifier", 1, 2),
    "of held-out pictures": ("held_out", 1, 2),
    "of samples, pixels": ("fd_pixels", 1, 2),
    "class accuracy, %": ("class_accuracy", 100, 1),
}


def experiments(parts: Iterable[str], seeds: int, share: float) -> Iterator[Experiment]:
    """Seed by seed, so that a benchmark that is stopped early has the first seeds of all experiments."""
    short = {recipe: shortened(recipe, share) for recipe in ("emoji32", *OTHERS.values())}
    for seed in range(seeds):
        variants: dict[str, tuple[str, ...]] = {AS_IT_IS: ()}
        if "guidance" in parts:
            variants |= {f"guidance {scale}": (f"sample.guidance={scale}",) for scale in GUIDANCE}
        if "choices" in parts:
            variants |= {POST_TRAINED: posttraining(), "generator aligned": REPA}
        yield Experiment("emoji32", {"choice": AS_IT_IS}, seed, short["emoji32"], variants)
        for name, changes in CHANGES.items() if "choices" in parts else ():
            yield Experiment("emoji32", {"choice": name}, seed, (*short["emoji32"], *changes), {name: ()})
        for name, recipe in OTHERS.items() if "choices" in parts else ():
            yield Experiment(recipe, {"choice": name}, seed, (*short[recipe], *IDS), {name: ()})


def shortened(name: str, share: float) -> tuple[str, ...]:
    """A share of the steps of a recipe's trainings, by overrides."""
    from pipeline.recipes.schema import load

    recipe = load(name)
    steps = {f"tokenizer.phases.{phase}": each.loop.steps for phase, each in recipe.tokenizer.phases.items()}
    steps["generator"] = recipe.generator.loop.steps
    return tuple(f"{key}.loop.steps={round(share * count)}" for key, count in steps.items())


def posttraining() -> tuple[str, ...]:
    """That of emoji32_robust_flow."""
    from pipeline.recipes.schema import load

    return (f"posttrain={json.dumps(asdict(load('emoji32_robust_flow').posttrain))}",)


def choices_table(results: Results) -> Iterator[str]:
    yield from table(results, "choice", [AS_IT_IS, "generator aligned", POST_TRAINED, *CHANGES, *OTHERS])


def guidance_table(results: Results) -> Iterator[str]:
    yield from table(results, "guidance", [AS_IT_IS, *(f"guidance {scale}" for scale in GUIDANCE)])


def table(results: Results, title: str, variants: Iterable[str]) -> Iterator[str]:
    """A row per variant that has a result."""
    yield f"| {title} | {' | '.join(COLUMNS)} |"
    yield "|---|" + "---|" * len(COLUMNS)
    for variant in variants:
        columns = [values_by_seed(results, key, scale, variant=variant) for key, scale, _ in COLUMNS.values()]
        if columns[0]:
            cells = [mean_and_spread(c.values(), digits) for c, (*_, digits) in zip(columns, COLUMNS.values())]
            yield f"| {variant} | {' | '.join(cells)} |"


def main() -> None:
    tables = {"choices": [choices_table], "guidance": [guidance_table]}
    parser = create_parser(__doc__, "runs/emoji_choices", 1, tables)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of the recipes")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=[AS_IT_IS, *CHANGES, *OTHERS])
    arguments = parse_arguments(parser)
    chosen = experiments(arguments.parts, arguments.seeds, arguments.share)
    only = [each for each in chosen if not arguments.only or each.tags["choice"] in arguments.only]
    results = run_experiments(only, arguments)
    print_tables(tables, arguments.parts, results)


if __name__ == "__main__":
    main()
