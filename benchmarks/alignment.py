"""Measures on the digits what it is worth to align latents, and a generator's hidden states, with a vision model.

    python benchmarks/alignment.py [--seeds 3] [--workers 2] [--folder runs/alignment] [--parts steps ...]

The teacher is a small classifier of the same digits, on its map of 4x4. The judge of distances is a classifier of
another seed; `fd_pixels` asks none.

`steps`: the distance of samples after a quarter, half and all of 1,200 steps of the generator (each a training of its
own, with its own decay of the rate) on plain codes of 32 channels, as many as VA-VAE has, on codes aligned by
`relational` (VA-VAE; at a weight of 0.5, and of 2) and by `feature_cosine` of noised codes (Send-VAE, RecTok), and with
REPA; reconstruction beside it, and how many steps the plain recipe takes to the same distance.
`dimensions`: codes of 4 to 64 channels with and without `relational` at 0.5, 600 steps. Both parts have a generator
smaller than the recipe's that reads codes token by token, whatever their channels.

`budget`: reconstruction of ViTok's autoencoder, after 400 steps, by the numbers in a code. `bands`: the error of
FA-VAE's two bands beside plain codes, on tiles of scikit-learn's two photographs, since digits, which are 8x8 enlarged,
have no fine detail of their own; with the published KL weight of 1e-6, since under the digits' own of 5e-4 neither code
keeps any. `flow`: how well a linear map reads the class off codes on their way to noise: plain, aligned and RecTok's.

Means and spread (standard deviation) over seeds; figures go to FOLDER. Every line runs in one process on one thread;
what is finished in FOLDER is not run again.
"""

import math
import statistics
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from PIL import Image
from quality_runs import Line, Rows, Tables, mean, parser_of, pick, print_tables, rows_in, run_all
from sklearn.datasets import load_sample_images

BudgetPoint = tuple[int, list[float], list[float]]  # numbers in a code, PSNR and error by seed
MAIN = "tokenizer.phases.main"
STEPS = (300, 600, 1200)
TOKENWISE = (  # for any number of channels; with the recipe's warm-up and average short trainings end as they began
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


def lines(parts: Iterable[str], seeds: int, folder: Path) -> Iterator[Line]:
    """Seed by seed, so that what is stopped early has a few seeds of all."""
    for seed in range(seeds):
        if "steps" in parts:
            for name in GENERATORS:
                facts, there = {"part": "steps", "tokenizer": name}, dimensions_facts(name, WIDE)
                changed, made = changes(name, WIDE), trainings(name)
                yield Line("digits", facts, seed, changed, made, borrowed=there, borrowed_recipe="digits")
        if "dimensions" in parts:
            for aligned in ("plain", "relational"):
                for dim in DIMENSIONS:
                    yield Line("digits", dimensions_facts(aligned, dim), seed, changes(aligned, dim), {"whole": ()})
        if "budget" in parts:
            for patch, dim in BUDGETS:
                facts = {"part": "budget", "patch": str(patch), "channels": str(dim)}
                shape = (f"tokenizer.model.patch_size={patch}", f"tokenizer.model.bottleneck.dim={dim}")
                yield Line("digits_vitok", facts, seed, (*shape, f"{MAIN}.loop.steps=400"), {"card": ()}, card=True)
        if "bands" in parts:
            tiles = f"data.source={{kind: image_folder, path: {photo_tiles(folder)}, held_out: 0.2}}"
            for name, (recipe, phases) in BANDS.items():
                changed = (tiles, *(f"tokenizer.phases.{phase}.weights.kl=1e-6" for phase in phases))
                yield Line(recipe, {"part": "bands", "tokenizer": name}, seed, changed, {"card": ()}, card=True)
        if "flow" in parts:
            for name, recipe in FLOW.items():
                yield Line(recipe, {"part": "flow", "tokenizer": name}, seed, (), {"card": ()}, card=True)


def photo_tiles(folder: Path, size: int = 16) -> Path:
    """A folder of scikit-learn's two photographs, cut in tiles that do not overlap: a class a photograph."""
    tiles = folder / "photo_tiles"
    if not tiles.is_dir():
        draft = folder / "photo_tiles.draft"
        photographs = load_sample_images()
        for name, pixels in zip(photographs.filenames, photographs.images):
            place = draft / Path(name).stem
            place.mkdir(parents=True, exist_ok=True)
            rows, columns = (side // size for side in pixels.shape[:2])
            for i, j in product(range(rows), range(columns)):
                tile = pixels[i * size : (i + 1) * size, j * size : (j + 1) * size]
                Image.fromarray(tile).save(place / f"{i:02}_{j:02}.png")
        draft.rename(tiles)
    return tiles


def changes(tokenizer: str, dim: int) -> tuple[str, ...]:
    """Of the recipe, for codes of `dim` channels."""
    return *TOKENWISE, *TOKENIZERS[tokenizer], f"tokenizer.model.bottleneck.dim={dim}"


def dimensions_facts(tokenizer: str, dim: int) -> dict[str, str]:
    return {"part": "dimensions", "tokenizer": tokenizer, "channels": str(dim)}


def trainings(tokenizer: str) -> dict[str, tuple[str, ...]]:
    """The generators of one tokenizer."""
    return {
        f"{name} {steps}": (f"generator.loop.steps={steps}", *(REPA if name == "REPA" else ()))
        for name in GENERATORS[tokenizer]
        for steps in STEPS
    }


def steps_table(rows: Rows) -> Iterator[str]:
    yield f"| codes, generator | {' | '.join(f'{steps} steps' for steps in STEPS)} | pixels | accuracy, % | PSNR |"
    yield "|---|" + "---|" * (len(STEPS) + 3)
    for name, generators in GENERATORS.items():
        for generator in generators:
            at = {"part": "steps", "tokenizer": name}
            found = [pick(rows, "fd_classifier", **at, variant=f"{generator} {steps}") for steps in STEPS]
            if not all(found):
                continue
            last = at | {"variant": f"{generator} {STEPS[-1]}"}
            cells = [mean(by.values()) for by in found] + [mean(pick(rows, "fd_pixels", **last).values())]
            cells += [mean(pick(rows, "class_accuracy", 100, **last).values(), 1)]
            cells += [mean(pick(rows, "psnr", **last).values(), 2)]
            yield f"| {name}, {generator} | {' | '.join(cells)} |"


def speed_table(rows: Rows) -> Iterator[str]:
    """How many times as many steps the plain recipe takes to the same distance: 2 is half of the steps."""
    yield f"| plain steps for one | {' | '.join(f'{steps} steps' for steps in STEPS)} |"
    yield "|---|" + "---|" * len(STEPS)
    plain = [pick(rows, "fd_classifier", part="steps", tokenizer="plain", variant=f"alone {steps}") for steps in STEPS]
    for name, generators in GENERATORS.items():
        for generator in generators:
            at = {"part": "steps", "tokenizer": name}
            cells = []
            for steps in STEPS:
                found = pick(rows, "fd_classifier", **at, variant=f"{generator} {steps}")
                seeds = [seed for seed in found if all(seed in by for by in plain)]
                speeds = [plain_steps([by[seed] for by in plain], found[seed]) / steps for seed in seeds]
                cells += [multiple(speeds, STEPS[-1] / steps)] if speeds else []
            if len(cells) == len(STEPS):
                yield f"| {name}, {generator} | {' | '.join(cells)} |"


def multiple(speeds: list[float], most: float) -> str:
    """Mean and spread, or a lower bound of the mean where plain training did not get as far within `most`."""
    if all(map(math.isfinite, speeds)):
        return mean(speeds, 2)
    return f"over {statistics.mean(min(speed, most) for speed in speeds):.2f}"


def plain_steps(distances: list[float], distance: float) -> float:
    """Steps after which the plain recipe, at `distances` after STEPS, is at `distance`, or infinitely many.

    Logarithms of both are joined by straight lines, the first of which goes on to fewer steps.
    """
    points = [(math.log(steps), math.log(found)) for steps, found in zip(STEPS, distances)]
    for (early, far), (late, near) in zip(points, points[1:]):
        if near <= math.log(distance) and near < far:
            return math.exp(early + (late - early) * (far - math.log(distance)) / (far - near))
    return math.inf


def dimensions_table(rows: Rows) -> Iterator[str]:
    yield "| channels | plain: PSNR | distance of samples | relational: PSNR | distance of samples |"
    yield "|---|---|---|---|---|"
    for dim in DIMENSIONS:
        found = [
            pick(rows, key, part="dimensions", tokenizer=name, channels=str(dim))
            for name in ("plain", "relational")
            for key in ("psnr", "fd_classifier")
        ]
        if all(found):
            yield f"| {dim} | {' | '.join(mean(by.values(), 2) for by in found)} |"


def budget_table(rows: Rows) -> Iterator[str]:
    """A row a geometry, then the lines through all of them, and through those of one patch size."""
    yield "| pixels of a patch, channels | numbers in a code | PSNR | mean squared error |"
    yield "|---|---|---|---|"
    points = budget_points(rows)
    for (patch, dim), (values, psnr, error) in points.items():
        yield f"| {patch}, {dim} | {values} | {mean(psnr, 2)} | {statistics.mean(error):.5f} |"
    yield from fitted("all", list(points.values()))
    for patch in sorted({patch for patch, _ in points}):
        yield from fitted(f"patches of {patch} pixels", [point for (size, _), point in points.items() if size == patch])


def fitted(name: str, points: list[BudgetPoint]) -> Iterator[str]:
    """The least-squares line of log error over log budget, and how much of it that explains; of three points or more.

    Logarithms are natural.
    """
    if len(points) > 2:
        across = [math.log(values) for values, _, _ in points]
        down = [math.log(statistics.mean(error)) for _, _, error in points]
        slope, start = statistics.linear_regression(across, down)
        explained = statistics.correlation(across, down) ** 2
        yield f"| {name}: log error = {start:.2f} {slope:+.2f} log numbers | | | R² {explained:.2f} |"


def budget_points(rows: Rows) -> dict[tuple[int, int], BudgetPoint]:
    """By geometry: the numbers in a code, PSNR, and the error of pixels in [-1, 1] that it stands for."""
    found = {}
    for patch, dim in BUDGETS:
        psnr = list(pick(rows, "psnr", part="budget", patch=str(patch), channels=str(dim)).values())
        if psnr:
            found[patch, dim] = (16 // patch) ** 2 * dim, psnr, [4 * 10 ** (-value / 10) for value in psnr]
    return found


def bands_table(rows: Rows) -> Iterator[str]:
    keys = {f"error_{band}": f"{band} band" for band in ("LL", "LH", "HL", "HH")} | {"psnr": "PSNR"}
    yield f"| codes | {' | '.join(keys.values())} |"
    yield "|---|" + "---|" * len(keys)
    for name in BANDS:
        found = {key: pick(rows, key, part="bands", tokenizer=name) for key in keys}
        if all(found.values()):
            cells = [mean(by.values(), 2 if key == "psnr" else 5) for key, by in found.items()]
            yield f"| {name} | {' | '.join(cells)} |"


def flow_table(rows: Rows) -> Iterator[str]:
    levels = sorted({level for row in rows for level in flow_of(row)}, key=float)
    yield f"| accuracy of a probe, % | {' | '.join(f'noise {level}' for level in levels)} |"
    yield "|---|" + "---|" * len(levels)
    for name in FLOW:
        found = [flow_of(row) for row in rows if row.items() >= {"part": "flow", "tokenizer": name}.items()]
        if found:
            cells = [mean((100 * accuracy[level] for accuracy in found), 1) for level in levels]
            yield f"| {name} | {' | '.join(cells)} |"


def flow_of(row: dict) -> dict[str, float]:
    """Accuracy by noise level."""
    return row.get("details", {}).get("flow_probe", {}) if row.get("part") == "flow" else {}


def draw(rows: Rows, folder: Path) -> None:
    """The figures there are numbers for."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from pipeline.reporting.plots import Plot, Series, draw_plot

    trade = []
    for name in ("plain", "relational"):
        points = []
        for dim in DIMENSIONS:
            at = {"part": "dimensions", "tokenizer": name, "channels": str(dim)}
            psnr, distance = (list(pick(rows, key, **at).values()) for key in ("psnr", "fd_classifier"))
            points += [(str(dim), statistics.mean(psnr), statistics.mean(distance))] if psnr else []
        if points:
            names, across, down = map(list, zip(*points))
            trade.append(Series(name, across, down, names))
    if trade:
        plot = Plot("PSNR of reconstructions, dB", "distance of samples", trade, log_down=True)
        draw_plot(plot, folder / "dimensions.png")
    points, groups = budget_points(rows), []
    for patch in sorted({patch for patch, _ in points}):
        mine = {dim: point for (size, dim), point in points.items() if size == patch}
        across = [float(values) for values, _, _ in mine.values()]
        down = [statistics.mean(error) for _, _, error in mine.values()]
        groups.append(Series(f"patches of {patch} pixels", across, down, [str(dim) for dim in mine]))
    if groups:
        draw_plot(Plot("numbers in a code", "mean squared error", groups, True, True), folder / "budget.png")
    curves = []
    for name in FLOW:
        found = [flow_of(row) for row in rows if row.items() >= {"part": "flow", "tokenizer": name}.items()]
        if found and found[0]:
            levels = sorted(found[0], key=float)
            down = [statistics.mean(100 * accuracy[level] for accuracy in found) for level in levels]
            curves.append(Series(name, [float(level) for level in levels], down))
    if curves:
        draw_plot(Plot("noise in the code", "accuracy of a linear probe, %", curves), folder / "flow.png")


def main() -> None:
    tables: Tables = {
        "steps": [steps_table, speed_table],
        "dimensions": [dimensions_table],
        "budget": [budget_table],
        "bands": [bands_table],
        "flow": [flow_table],
    }
    arguments = parser_of(__doc__, "runs/alignment", 3, tables).parse_args()
    folder = arguments.folder.resolve()
    run_all(list(lines(arguments.parts, arguments.seeds, folder)), folder, arguments.workers)
    rows = rows_in(folder)
    print_tables(tables, arguments.parts, rows)
    draw(rows, folder)


if __name__ == "__main__":
    main()
