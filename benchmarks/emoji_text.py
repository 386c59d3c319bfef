"""Three families of generators that are asked in words, trained for equal times, by how often their prompt is found.

    python benchmarks/emoji_text.py [--seeds 3] [--minutes 12] [--workers 2] [--folder emoji_text] [--picture FILE.png]
                                    [--quick]

`emoji32_text` (flow), `emoji32_text_ar` (next token) and `emoji32_text_maskgit` (masked) each train their generator
for as many minutes of one core: steps are counted by a short training first, which `steps.json` in the folder keeps.
Samples are of the names of held-out pictures, which no training saw. Retrieval is the fraction of samples for which a
judge of other seed finds the name among ten; beside it stand chance and the held-out pictures themselves. Every
family is sampled at several scales of guidance. `--picture` draws names of held-out pictures and new combinations of
words, by the first seed. Resumable: results lie in the folder, and `--seeds 0` prints their tables again.
"""

import json
import math
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from digits import run
from quality_runs import (
    Experiment,
    Results,
    create_parser,
    experiment_folder,
    mean_and_spread,
    parse_arguments,
    print_tables,
    run_experiments,
    values_by_seed,
)

FAMILIES = {"flow": "emoji32_text", "next token": "emoji32_text_ar", "masked": "emoji32_text_maskgit"}
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
SHORT = 100  # steps of the training that tells how long one takes
NEW = (  # combinations of words that no name has
    *("a blue fox", "a green strawberry", "a red car with wings", "an owl with a crown"),
    *("a yellow house", "a robot face with glasses", "a pink clock", "two hearts and a star"),
)
SHOWN = 8  # held-out names


def count_steps(arguments: Namespace) -> dict[str, int]:
    """Steps of each family that take so many minutes; measured once, one family after the other."""
    file = arguments.folder / "steps.json"
    if arguments.quick:
        return dict.fromkeys(FAMILIES, 2)
    if not file.exists():
        arguments.folder.mkdir(parents=True, exist_ok=True)
        steps = {}
        for family, recipe in FAMILIES.items():
            with tempfile.TemporaryDirectory() as folder:
                short = [f"generator.loop.steps={SHORT}", "tokenizer.phases.main.loop.steps=2", "sample.images=8"]
                _, _, stages = run(recipe, [*short, "evaluate.images=40"], folder)
            steps[family] = math.ceil(60 * arguments.minutes * SHORT / stages["generator"])
        file.write_text(json.dumps(steps))
    return json.loads(file.read_text())


def experiments(arguments: Namespace) -> list[Experiment]:
    steps = count_steps(arguments) if arguments.seeds else {}
    variants = {f"guidance {scale:g}": (f"sample.guidance={scale:g}",) for scale in GUIDANCE}
    return [
        Experiment(recipe, {"family": family}, seed, (f"generator.loop.steps={steps[family]}",), variants)
        for seed in range(arguments.seeds)
        for family, recipe in FAMILIES.items()
    ]


def table(results: Results) -> Iterator[str]:
    """A row for each family and scale: means and standard deviations over seeds."""
    key = next(name for name in results[0] if name.startswith("caption_retrieval_"))
    judge = key.removeprefix("caption_retrieval_")
    yield f"| family | guidance | retrieval among ten, {judge} judge | fd_classifier | near copies, pixels |"
    yield "|---|---|---|---|---|"
    for family in FAMILIES:
        for scale in GUIDANCE:
            tags = {"family": family, "variant": f"guidance {scale:g}"}
            columns = [values_by_seed(results, name, **tags) for name in (key, "fd_classifier", "near_copies_pixels")]
            if all(columns):
                cells = " | ".join(mean_and_spread(column.values()) for column in columns)
                yield f"| {family} | {scale:g} | {cells} |"
    seconds = {family: values_by_seed(results, "seconds", family=family) for family in FAMILIES}
    shown = ", ".join(f"{name} {mean_and_spread(times.values(), 0)} s" for name, times in seconds.items() if times)
    yield f"Chance 0.1. Training of the generators: {shown}."


def table_of_real(folder: Path) -> Iterator[str]:
    """What the judges find of the held-out pictures themselves, by seed."""
    for report in sorted(folder.glob("*/*/runs/*/report/metrics.json")):
        numbers = json.loads(report.read_text())
        name, number = next((key, one) for key, one in numbers.items() if key.startswith("caption_retrieval_"))
        seed = report.parents[3].name
        yield f"seed {seed}, {report.parents[1].name}: {name} of real held-out pictures {number['held_out']:.3f}"


def draw(folder: Path, picture: Path) -> None:
    """A row pair for each family: names of held-out pictures, and new combinations, each below its sample."""
    import numpy as np
    import torch

    from pipeline.images.grids import captioned
    from pipeline.recipes.schema import load
    from pipeline.sampling.held_out_prompts import held_out_prompts
    from pipeline.sampling.many_images import assemble

    pixels, captions = [], []
    for family, recipe in FAMILIES.items():
        run_folder = experiment_folder(folder, {"family": family}, 0) / "runs" / recipe
        parts = (run_folder / name for name in ("decoder", "generator", "text"))
        pipe = assemble(load(recipe), *parts)
        pipe.set_progress_bar_config(disable=True)
        prompts = [*held_out_prompts(run_folder / "text", SHOWN).texts, *NEW]
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        pixels += [np.asarray(image) for image in pipe(prompts, generator=generators).images]
        captions += [f"{prompt} ({family})" for prompt in prompts]
    captioned(np.stack(pixels), captions, SHOWN).save(picture)


def main() -> None:
    parser = create_parser(__doc__, "emoji_text", 3, ["families"])
    parser.add_argument("--minutes", type=float, default=12, help="of training of each generator")
    parser.add_argument("--picture", type=Path)
    arguments = parse_arguments(parser)
    results = run_experiments(experiments(arguments), arguments)
    if not results:
        return
    print_tables({"families": [table]}, arguments.parts, results)
    print("\n".join(table_of_real(arguments.folder)))
    if arguments.picture:
        draw(arguments.folder, arguments.picture)


if __name__ == "__main__":
    main()
