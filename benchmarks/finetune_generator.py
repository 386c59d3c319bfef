"""Measures on the digits what a trained generator is worth for two classes that it has never seen.

    python benchmarks/finetune_generator.py [--seeds 5] [--workers 2] [--folder runs/finetune_generator]

A tokenizer and a flow transformer (depth 3, width 96) are trained on the digits 0 to 7, as by the recipe `digits`.
Then, on 8 and 9 alone and on the codes of that tokenizer, by the recipe `finetune_generator`: a tenth of the steps from
scratch, from the trained network with a new table of labels, at one rate and at a higher one for that table, and by an
adapter of low rank. Rates are the best of those tried with another seed.

Class accuracy and Fréchet distances are of 200 samples by a classifier of the real training images of 8 and 9, and of
pixels. Means and spread (standard deviation) over seeds. The tokenizer is trained once, with the first seed. Every
experiment runs in one process on one thread; one that has finished in FOLDER is not run again.
"""

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
    values_by_seed,
)

STEPS = 1200  # of the recipe digits
NEW = (8, 9)
BEFORE, AFTER = {"digits": "0 to 7"}, {"digits": "8 and 9"}
SMALL = ("generator.network.depth=3", "generator.network.width=96", "generator.network.heads=3")
SCRATCH = (
    "generator.start=null",
    "generator.network={kind: diffusion_transformer, depth: 3, width: 96, heads: 3, patch_size: 2}",
    "generator.objective={kind: flow_matching, time: logit_normal}",
    "generator.weights={flow: 1.0}",
)
VARIANTS = {
    "from scratch": (*SCRATCH, "generator.loop.lr={network: 8.0e-3, new: null}"),
    "tuned, one rate": ("generator.loop.lr={network: 2.0e-3, new: null}",),
    "tuned, new labels faster": ("generator.loop.lr={network: 1.0e-3, new: 3.0e-2}",),
    "LoRA, rank 16, all layers": (
        "generator.adapter={rank: 16, layers: all}",
        "generator.loop.lr={network: 1.0e-2, new: 1.0e-2}",
    ),
}
COLUMNS = {  # key of the report: title, factor and digits
    "class_accuracy": ("class accuracy, %", 100, 1),
    "fd_classifier": ("distance, classifier", 1, 3),
    "fd_pixels": ("distance, pixels", 1, 2),
}


def write_pictures(folder: Path) -> None:
    """Folders `old` and `new` of the digits 0 to 7 and of 8 and 9, split as the digits are."""
    from pipeline.datasets.digits import Digits

    for split, name in (("train", "train"), ("held_out", "val")):
        digits = Digits(split)
        for index in range(len(digits)):
            record = digits.read(index)
            place = folder / ("new" if record.label in NEW else "old") / name / str(record.label)
            place.mkdir(parents=True, exist_ok=True)
            record.image.save(place / f"{index:04d}.png")


def trained_tokenizer(folder: Path) -> Experiment:
    """On the digits 0 to 7, by the recipe."""
    return Experiment(
        "digits", {"digits": "tokenizer"}, 0, (source(folder),), {"trained": ()}, last_stage="encode_dataset"
    )


def trained_generator(folder: Path, seed: int) -> Experiment:
    """On the digits 0 to 7, and on that tokenizer."""
    tokenizer = experiment_folder(folder, {"digits": "tokenizer"}, 0) / "runs" / "digits" / "tokenizer"
    overrides = source(folder), f"tokenizer.start={tokenizer}", "tokenizer.phases=null", *SMALL
    return Experiment("digits", BEFORE, seed, overrides, {"trained": ()}, last_stage="train_generator")


def source(folder: Path) -> str:
    return f"data.source={{kind: image_folder, path: {folder / 'pictures' / 'old'}}}"


def tuned_generators(folder: Path, seed: int) -> Experiment:
    """On 8 and 9, by every variant."""
    trained = experiment_folder(folder, BEFORE, seed) / "runs" / "digits"
    overrides = (
        f"data.source.path={folder / 'pictures' / 'new'}",
        *("data.size=16", "data.flip=false", "latents.flip=false", "sample.images=200", "sample.guidance=1.25"),
        *(f"tokenizer.start={trained / 'latents' / 'tokenizer'}", f"generator.start.folder={trained / 'generator'}"),
        *(f"generator.loop.steps={STEPS // 10}", "generator.loop.warmup=10", "generator.loop.schedule=cosine"),
        *("generator.loop.ema=0.95", "sample.steps=25", "sample.sampler={solver: unipc}"),
        "evaluate.metrics=[class_accuracy,frechet_distance]",
    )
    return Experiment("finetune_generator", AFTER, seed, overrides, VARIANTS)


def table(results: Results) -> Iterator[str]:
    titles = [title for title, _, _ in COLUMNS.values()]
    yield f"| generator of 8 and 9, {STEPS // 10} steps | {' | '.join(titles)} |"
    yield "|---|" + "---|" * len(titles)
    for name in VARIANTS:
        cells = []
        for key, (_, factor, digits) in COLUMNS.items():
            cells.append(mean_and_spread(values_by_seed(results, key, factor, variant=name).values(), digits))
        yield f"| {name} | {' | '.join(cells)} |"
    held_out = [result["held_out"] for result in select(results, AFTER)]
    yield f"\nDistance of real held-out digits, classifier: {mean_and_spread(held_out)}"


def main() -> None:
    arguments = parse_arguments(create_parser(__doc__, "runs/finetune_generator", 5, ["tuned"]))
    if arguments.seeds:
        write_pictures(arguments.folder / "pictures")
        run_experiments([trained_tokenizer(arguments.folder)], arguments)
    seeds = range(arguments.seeds)
    run_experiments([trained_generator(arguments.folder, seed) for seed in seeds], arguments)
    results = run_experiments([tuned_generators(arguments.folder, seed) for seed in seeds], arguments)
    print_tables({"tuned": [table]}, arguments.parts, results)


if __name__ == "__main__":
    main()
