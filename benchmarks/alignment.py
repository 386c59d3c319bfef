"""Measures on the digits the effect of aligning latents, and a generator's hidden states, with a vision model.

    python benchmarks/alignment.py [--seeds 3] [--workers 2] [--folder runs/alignment] [--parts steps ...]

The teacher is a small classifier of the same digits, by its 4x4 feature map. Distances are in the features of a
classifier trained with another seed; `fd_pixels` needs none.

`steps`: the distance of samples after a quarter, half and all of 1,200 steps of the generator (each a separate training
with its own learning rate schedule) on plain codes of 32 channels, as many as VA-VAE has, on codes aligned by
`relational` (VA-VAE; at weights 0.5 and 2) and by `feature_cosine` of noised codes (Send-VAE, RecTok), and with REPA;
beside it reconstruction, and the number of steps in which the plain recipe reaches the same distance.
`dimensions`: codes of 4 to 64 channels with and without `relational` at 0.5, 600 steps. In both parts the generator is
smaller than the recipe's and reads one token per position of the code, whatever its channels.

`budget`: reconstruction of ViTok's autoencoder after 400 steps, by the numbers per code. `bands`: the error by
frequency band of FA-VAE's two-band codes and of plain ones, on tiles of scikit-learn's two photographs, since digits
are 8x8 images enlarged and have no fine detail; with the published KL weight of 1e-6, since under the recipes' 5e-4
neither code keeps any. `flow`: accuracy of a linear probe of the class on noised codes, by noise level: plain, aligned
and RecTok's.

Means and spread (standard deviation) over seeds; figures go to FOLDER. Every experiment runs in one process on one
thread; one that has finished in FOLDER is not run again.
"""

import math
import statistics
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from PIL import Image
from quality_runs import (
    Experiment,
    Results,
    Tables,
    TokenizerSource,
    create_parser,
    mean_and_spread,
    parse_arguments,
    print_tables,
    run_experiments,
    select,
    values_by_seed,
)
from sklearn.datasets import load_sample_images

BudgetPoint = tuple[int, list[float], list[float]]  # numbers per code, PSNR and error by seed
MAIN = "tokenizer.phases.main"
STEPS = (300, 600, 1200)
TOKENWISE = (  # for any number of channels; the recipe's warm-up and average are too long for short trainings
    *("generator.network.patch_size=1", "generator.network.depth=3", "generator.network.width=128"),
    *("generator.loop.steps=600", "generator.loop.warmup=30", "generator.loop.ema=0.98"),
)
COSINE = "kind: feature_cosine, teacher: classifier, source: noised, standardize: true"
HEAD = "head: {blocks: 1, width: 64, heads: 4, hidden: 128}"


def relational(weight: float) -> tuple[str, ...]:
    return (
        f"{MAIN}.losses.alignment={{kind: relational, teacher: classifier}}",
        f"{MAIN}.weights.relational={weight}",
        f"{MAIN}.balance.relational=encoder.conv_out.weight",
    )


TOKENIZERS = {
    "plain": (),
    "relational": relational(0.5),
    "relational weight 2": relational(2.0),
    "feature cosine": (f"{MAIN}.losses.alignment={{{COSINE}, {HEAD}}}", f"{MAIN}.weights.feature_cosine=0.1"),
}
GENERATORS = {  # of `steps`, by tokenizer
    "plain": ("alone", "REPA"),
    "relational": ("alone",),
    "relational weight 2": ("alone", "REPA"),
    "feature cosine": ("alone",),
}
ALIGNED = "generator.losses.alignment={kind: feature_cosine, teacher: classifier, block: 1, head: {hidden: 256}}"
REPA = (ALIGNED, "generator.weights.feature_cosine=0.5")
DIMENSIONS = (4, 8, 16, 32, 64)
WIDE = 32  # channels of the codes of `steps`
BUDGETS = ((2, 2), (2, 8), (4, 4), (4, 8), (4, 16), (4, 32), (8, 32), (8, 64))  # pixels of a patch, channels
BANDS = {"plain": ("digits", ("main",)), "two bands": ("digits_favae", ("low", "high"))}  # recipe and its phases
FLOW = {"plain": "digits", "relational": "digits_vavae", "RecTok": "digits_rectok"}


def experiments(parts: Iterable[str], seeds: int, folder: Path) -> Iterator[Experiment]:
    """Seed by seed, so that a benchmark that is stopped early has the first seeds of all experiments."""
    for seed in range(seeds):
        if "steps" in parts:
            for name in GENERATORS:
                tags, source = (
                    {"part": "steps", "tokenizer": name},
                    TokenizerSource("digits", dimensions_tags(name, WIDE)),
                )
                overrides, variants = tokenwise(name, WIDE), trainings(name)
                yield Experiment("digits", tags, seed, overrides, variants, tokenizer_source=source)
        if "dimensions" in parts:
            for aligned in ("plain", "relational"):
                for dim in DIMENSIONS:
                    tags = dimensions_tags(aligned, dim)
                    yield Experiment("digits", tags, seed, tokenwise(aligned, dim), {"whole": ()})
        if "budget" in parts:
            for patch, dim in BUDGETS:
                tags = {"part": "budget", "patch": str(patch), "channels": str(dim)}
                shape = (f"tokenizer.model.patch_size={patch}", f"tokenizer.model.bottleneck.dim={dim}")
                yield card_experiment("digits_vitok", tags, seed, (*shape, f"{MAIN}.loop.steps=400"))
        if "bands" in parts:
            tiles = f"data.source={{kind: image_folder, path: {photo_tiles(folder)}, held_out: 0.2}}"
            for name, (recipe, phases) in BANDS.items():
                overrides = (tiles, *(f"tokenizer.phases.{phase}.weights.kl=1e-6" for phase in phases))
                yield card_experiment(recipe, {"part": "bands", "tokenizer": name}, seed, overrides)
        if "flow" in parts:
            for name, recipe in FLOW.items():
                yield card_experiment(recipe, {"part": "flow", "tokenizer": name}, seed, ())


def card_experiment(recipe: str, tags: dict[str, str], seed: int, overrides: tuple[str, ...]) -> Experiment:
    """One that trains the tokenizer alone and makes its card."""
    return Experiment(recipe, tags, seed, overrides, {"card": ()}, card=True, last_stage="encode_dataset")


def photo_tiles(folder: Path, size: int = 16) -> Path:
    """A folder of scikit-learn's two photographs, cut into tiles that do not overlap; each photograph is a class."""
    tiles = folder / "photo_tiles"
    if not tiles.is_dir():
        draft = folder / "photo_tiles.draft"
        photographs = load_sample_images()
        for name, pixels in zip(photographs.filenames, photographs.images):
            of_class = draft / Path(name).stem
            of_class.mkdir(parents=True, exist_ok=True)
            rows, columns = (side // size for side in pixels.shape[:2])
            for i, j in product(range(rows), range(columns)):
                tile = pixels[i * size : (i + 1) * size, j * size : (j + 1) * size]
                Image.fromarray(tile).save(of_class / f"{i:02}_{j:02}.png")
        draft.rename(tiles)
    return tiles


def tokenwise(tokenizer: str, dim: int) -> tuple[str, ...]:
    """Overrides for codes of `dim` channels."""
    return *TOKENWISE, *TOKENIZERS[tokenizer], f"tokenizer.model.bottleneck.dim={dim}"


def dimensions_tags(tokenizer: str, dim: int) -> dict[str, str]:
    return {"part": "dimensions", "tokenizer": tokenizer, "channels": str(dim)}


def trainings(tokenizer: str) -> dict[str, tuple[str, ...]]:
    """Variants: the generators trained on the codes of one tokenizer."""
    return {
        f"{name} {steps}": (f"generator.loop.steps={steps}", *(REPA if name == "REPA" else ()))
        for name in GENERATORS[tokenizer]
        for steps in STEPS
    }


def steps_table(results: Results) -> Iterator[str]:
    yield f"| codes, generator | {' | '.join(f'{steps} steps' for steps in STEPS)} | pixels | accuracy, % | PSNR |"
    yield "|---|" + "---|" * (len(STEPS) + 3)
    for name, generators in GENERATORS.items():
        for generator in generators:
            variants = [{"part": "steps", "tokenizer": name, "variant": f"{generator} {steps}"} for steps in STEPS]
            distances = [values_by_seed(results, "fd_classifier", **tags) for tags in variants]
            if not all(distances):
                continue
            last = variants[-1]
            cells = [mean_and_spread(by_seed.values()) for by_seed in distances]
            cells += [mean_and_spread(values_by_seed(results, "fd_pixels", **last).values())]
            cells += [mean_and_spread(values_by_seed(results, "class_accuracy", 100, **last).values(), 1)]
            cells += [mean_and_spread(values_by_seed(results, "psnr", **last).values(), 2)]
            yield f"| {name}, {generator} | {' | '.join(cells)} |"


def speed_table(results: Results) -> Iterator[str]:
    """The steps in which the plain recipe reaches the same distance, as a multiple: at 2 alignment halves the steps."""
    yield f"| speed-up over plain | {' | '.join(f'{steps} steps' for steps in STEPS)} |"
    yield "|---|" + "---|" * len(STEPS)
    plain = [
        values_by_seed(results, "fd_classifier", part="steps", tokenizer="plain", variant=f"alone {steps}")
        for steps in STEPS
    ]
    for name, generators in GENERATORS.items():
        for generator in generators:
            cells = []
            for steps in STEPS:
                tags = {"part": "steps", "tokenizer": name, "variant": f"{generator} {steps}"}
                distances = values_by_seed(results, "fd_classifier", **tags)
                seeds = [seed for seed in distances if all(seed in by_seed for by_seed in plain)]
                speeds = [plain_steps([by_seed[seed] for by_seed in plain], distances[seed]) / steps for seed in seeds]
                cells += [format_speed(speeds, STEPS[-1] / steps)] if speeds else []
            if len(cells) == len(STEPS):
                yield f"| {name}, {generator} | {' | '.join(cells)} |"


def format_speed(speeds: list[float], most: float) -> str:
    """Mean and spread, or a lower bound of the mean where plain training did not reach the distance within `most`."""
    if all(map(math.isfinite, speeds)):
        return mean_and_spread(speeds, 2)
    return f"over {statistics.mean(min(speed, most) for speed in speeds):.2f}"


def plain_steps(distances: list[float], distance: float) -> float:
    """Steps in which the plain recipe, with `distances` after STEPS, reaches `distance`; infinity where it does not.

    Interpolated linearly in the logarithms of both, and extrapolated below the first of STEPS.
    """
    points = [(math.log(steps), math.log(reached)) for steps, reached in zip(STEPS, distances)]
    for (early, far), (late, near) in zip(points, points[1:]):
        if near <= math.log(distance) and near < far:
            return math.exp(early + (late - early) * (far - math.log(distance)) / (far - near))
    return math.inf


def dimensions_table(results: Results) -> Iterator[str]:
    yield "| channels | plain: PSNR | distance of samples | relational: PSNR | distance of samples |"
    yield "|---|---|---|---|---|"
    for dim in DIMENSIONS:
        columns = [
            values_by_seed(results, key, **dimensions_tags(name, dim))
            for name in ("plain", "relational")
            for key in ("psnr", "fd_classifier")
        ]
        if all(columns):
            yield f"| {dim} | {' | '.join(mean_and_spread(by_seed.values(), 2) for by_seed in columns)} |"


def budget_table(results: Results) -> Iterator[str]:
    """A row per geometry, then the fit to all of them, and to those of each patch size."""
    yield "| patch size in pixels, channels | numbers per code | PSNR | mean squared error |"
    yield "|---|---|---|---|"
    points = budget_points(results)
    for (patch, dim), (values, psnr, error) in points.items():
        yield f"| {patch}, {dim} | {values} | {mean_and_spread(psnr, 2)} | {statistics.mean(error):.5f} |"
    yield from fit_rows("all", list(points.values()))
    for patch in sorted({patch for patch, _ in points}):
        yield from fit_rows(
            f"patches of {patch} pixels", [point for (size, _), point in points.items() if size == patch]
        )


def fit_rows(name: str, points: list[BudgetPoint]) -> Iterator[str]:
    """The least-squares fit of log error over log budget (natural logarithms), and its R²; of three points or more."""
    if len(points) > 2:
        across = [math.log(values) for values, _, _ in points]
        down = [math.log(statistics.mean(error)) for _, _, error in points]
        slope, intercept = statistics.linear_regression(across, down)
        explained = statistics.correlation(across, down) ** 2
        yield f"| {name}: log error = {intercept:.2f} {slope:+.2f} log numbers | | | R² {explained:.2f} |"


def budget_points(results: Results) -> dict[tuple[int, int], BudgetPoint]:
    """By geometry: the numbers per code, PSNR, and the mean squared error of pixels in [-1, 1] that PSNR implies."""
    points = {}
    for patch, dim in BUDGETS:
        psnr = list(values_by_seed(results, "psnr", part="budget", patch=str(patch), channels=str(dim)).values())
        if psnr:
            points[patch, dim] = (16 // patch) ** 2 * dim, psnr, [4 * 10 ** (-value / 10) for value in psnr]
    return points


def bands_table(results: Results) -> Iterator[str]:
    keys = {f"error_{band}": f"{band} band" for band in ("LL", "LH", "HL", "HH")} | {"psnr": "PSNR"}
    yield f"| codes | {' | '.join(keys.values())} |"
    yield "|---|" + "---|" * len(keys)
    for name in BANDS:
        columns = {key: values_by_seed(results, key, part="bands", tokenizer=name) for key in keys}
        if all(columns.values()):
            cells = [mean_and_spread(column.values(), 2 if key == "psnr" else 5) for key, column in columns.items()]
            yield f"| {name} | {' | '.join(cells)} |"


def flow_table(results: Results) -> Iterator[str]:
    levels = sorted(
        {level for name in FLOW for accuracy in probe_accuracies(results, name) for level in accuracy}, key=float
    )
    yield f"| accuracy of a linear probe, % | {' | '.join(f'noise {level}' for level in levels)} |"
    yield "|---|" + "---|" * len(levels)
    for name in FLOW:
        if accuracies := probe_accuracies(results, name):
            cells = [mean_and_spread((100 * accuracy[level] for accuracy in accuracies), 1) for level in levels]
            yield f"| {name} | {' | '.join(cells)} |"


def probe_accuracies(results: Results, tokenizer: str) -> list[dict[str, float]]:
    """Accuracy by noise level, of each seed."""
    return [result["details"]["flow_probe"] for result in select(results, {"part": "flow", "tokenizer": tokenizer})]


def draw_figures(results: Results, folder: Path) -> None:
    """Those that there are results for."""
    from pipeline.reporting.plots import Plot, Series, draw_plot

    tradeoff = []
    for name in ("plain", "relational"):
        points = []
        for dim in DIMENSIONS:
            tags = dimensions_tags(name, dim)
            psnr, distance = (list(values_by_seed(results, key, **tags).values()) for key in ("psnr", "fd_classifier"))
            points += [(str(dim), statistics.mean(psnr), statistics.mean(distance))] if psnr else []
        if points:
            names, across, down = map(list, zip(*points))
            tradeoff.append(Series(name, across, down, names))
    if tradeoff:
        plot = Plot("PSNR of reconstructions, dB", "distance of samples", tradeoff, log_down=True)
        draw_plot(plot, folder / "dimensions.png")
    points, groups = budget_points(results), []
    for patch in sorted({patch for patch, _ in points}):
        group = {dim: point for (size, dim), point in points.items() if size == patch}
        across = [float(values) for values, _, _ in group.values()]
        down = [statistics.mean(error) for _, _, error in group.values()]
        groups.append(Series(f"patches of {patch} pixels", across, down, [str(dim) for dim in group]))
    if groups:
        draw_plot(Plot("numbers per code", "mean squared error", groups, True, True), folder / "budget.png")
    curves = []
    for name in FLOW:
        if accuracies := probe_accuracies(results, name):
            levels = sorted(accuracies[0], key=float)
            down = [statistics.mean(100 * accuracy[level] for accuracy in accuracies) for level in levels]
            curves.append(Series(name, [float(level) for level in levels], down))
    if curves:
        draw_plot(Plot("noise level of the code", "accuracy of a linear probe, %", curves), folder / "flow.png")


def main() -> None:
    tables: Tables = {
        "steps": [steps_table, speed_table],
        "dimensions": [dimensions_table],
        "budget": [budget_table],
        "bands": [bands_table],
        "flow": [flow_table],
    }
    arguments = parse_arguments(create_parser(__doc__, "runs/alignment", 3, tables))
    results = run_experiments(list(experiments(arguments.parts, arguments.seeds, arguments.folder)), arguments)
    print_tables(tables, arguments.parts, results)
    draw_figures(results, arguments.folder)


if __name__ == "__main__":
    main()
