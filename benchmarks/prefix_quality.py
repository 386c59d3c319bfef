"""What the first tokens of a code are worth: held-out images rebuilt from 1, 2, 4, ... tokens, as a table and a figure.

    python benchmarks/prefix_quality.py [RECIPE ...] [--steps 1500] [--seeds 1] [--figure quality.png]

Every recipe's tokenizer is one whose prefixes decode. By default they are `digits_one_d_piece`, which was trained on
codes with their tail dropped, and the TiTok of `digits_titok_maskgit`, of the same size, which was not. Both train as
many steps, on one thread; about three minutes for a seed on an idle core.
"""

import os
import statistics
import sys
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import run  # noqa: E402
from pipeline.images.eight_bits import levels  # noqa: E402
from pipeline.images.reading import Images  # noqa: E402
from pipeline.metrics.psnr import psnr  # noqa: E402
from pipeline.recipes.schema import Recipe, load  # noqa: E402
from pipeline.reporting.plots import Plot, Series, draw_plot  # noqa: E402
from pipeline.saved_folders import load_tokenizer  # noqa: E402
from pipeline.tokenizers.base import Tokenizer  # noqa: E402

RECIPES = ("digits_one_d_piece", "digits_titok_maskgit")
ByLength = dict[int, float]  # PSNR in dB by the number of tokens


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--steps", type=int, default=1500, help="of each phase of the tokenizers' training")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=256, help="held-out images that are measured")
    parser.add_argument("--figure", type=Path)
    return parser.parse_args()


def train(name: str, seed: int, steps: int, folder: Path) -> tuple[Tokenizer, Recipe]:
    """The tokenizer of a recipe, trained in the folder, and the recipe."""
    phases = load(name).tokenizer.phases
    overrides = [f"seed={seed}", f"name={name}_{seed}", *(f"tokenizer.phases.{p}.loop.steps={steps}" for p in phases)]
    recipe = load(name, overrides)
    run.run_stages(recipe, name, overrides, "train_tokenizer")
    tokenizer = load_tokenizer(str(folder / "runs" / recipe.name / "tokenizer"), name).eval()
    if not tokenizer.can.prefixes:
        raise ValueError(f"{name}: its tokenizer decodes whole codes alone; name one whose prefixes decode")
    return tokenizer, recipe


@torch.no_grad()
def measure(tokenizer: Tokenizer, recipe: Recipe, count: int) -> ByLength:
    """PSNR, the mean over held-out images, by how many of their tokens were decoded."""
    images = Images(recipe.data, "held_out")
    pictures = images.plain(torch.arange(min(count, len(images)))).images
    code, found = tokenizer.encode(pictures), {}
    for length in lengths(tokenizer.spec.tokens):
        rebuilt = tokenizer.decode(code.map(lambda tensor: tensor[:, :length]))  # noqa: B023
        found[length] = psnr(levels(pictures), levels(rebuilt.clamp(-1, 1))).mean().item()
    return found


def lengths(tokens: int) -> list[int]:
    """Powers of two up to the whole code."""
    return [*(2**power for power in range(tokens.bit_length()) if 2**power < tokens), tokens]


def mean_over_seeds(of_seeds: list[ByLength]) -> ByLength:
    return {length: statistics.mean(one[length] for one in of_seeds) for length in of_seeds[0]}


def table(results: dict[str, ByLength]) -> Iterator[str]:
    columns = sorted({length for one in results.values() for length in one})
    yield f"| PSNR in dB by tokens | {' | '.join(map(str, columns))} |"
    yield f"|---|{'---|' * len(columns)}"
    for name, one in results.items():
        yield f"| `{name}` | {' | '.join(f'{one[n]:.1f}' if n in one else '' for n in columns)} |"


def main() -> None:
    asked = parse()
    torch.set_num_threads(1)
    figure, before = asked.figure and asked.figure.resolve(), Path.cwd()
    results: dict[str, ByLength] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name in asked.recipes:
                trained = (train(name, seed, asked.steps, Path(folder)) for seed in range(asked.seeds))
                results[name] = mean_over_seeds([measure(*each, asked.images) for each in trained])
        finally:
            os.chdir(before)
    print("\n".join(table(results)))
    if figure:
        lines = [Series(name, list(map(float, one)), list(one.values())) for name, one in results.items()]
        draw_plot(Plot("tokens that are decoded", "PSNR of held-out images, dB", lines, log_across=True), figure)


if __name__ == "__main__":
    main()
