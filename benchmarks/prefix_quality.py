"""What the first tokens of a code are worth: held-out images rebuilt from 1, 2, 4, ... tokens, as a table and a figure.

    python benchmarks/prefix_quality.py [RECIPE ...] [--steps 1500] [--seeds 1] [--figure quality.png]

Every recipe's tokenizer is one whose prefixes decode. By default they are `digits_one_d_piece`, which was trained on
codes with their tail dropped, and the TiTok of `digits_titok_maskgit`, of the same size, which was not. Both train as
many steps, on one thread; about three minutes for a seed on an idle core.
"""

import statistics
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from trained_tokenizers import held_out_pictures, mean_psnr, temporary_folder, train_tokenizer

from pipeline.recipes.schema import load
from pipeline.reporting.plots import Plot, Series, draw_plot
from pipeline.saved_folders import load_tokenizer
from pipeline.tokenizers.base import Tokenizer

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


def quality_by_length(name: str, seed: int, steps: int, count: int) -> ByLength:
    """That of a recipe's tokenizer, trained for these steps, on as many held-out images."""
    phases = load(name).tokenizer.phases
    overrides = [f"seed={seed}", f"name={name}_{seed}", *(f"tokenizer.phases.{p}.loop.steps={steps}" for p in phases)]
    recipe, folder = train_tokenizer(name, overrides)
    tokenizer = load_tokenizer(str(folder / "tokenizer"), name).eval()
    if not tokenizer.can.prefixes:
        raise ValueError(f"{name}: its tokenizer decodes whole codes alone; name one whose prefixes decode")
    return measure(tokenizer, held_out_pictures(recipe, count))


@torch.no_grad()
def measure(tokenizer: Tokenizer, pictures: Tensor) -> ByLength:
    """PSNR, the mean over pictures, by how many of their tokens were decoded."""
    code, found = tokenizer.encode(pictures), {}
    for length in lengths(tokenizer.spec.tokens):
        rebuilt = tokenizer.decode(code.map(lambda tensor: tensor[:, :length]))  # noqa: B023
        found[length] = mean_psnr(pictures, rebuilt)
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
    figure = asked.figure and asked.figure.resolve()
    results: dict[str, ByLength] = {}
    with temporary_folder():
        for name in asked.recipes:
            seeds = range(asked.seeds)
            results[name] = mean_over_seeds([quality_by_length(name, n, asked.steps, asked.images) for n in seeds])
    print("\n".join(table(results)))
    if figure:
        lines = [Series(name, list(map(float, one)), list(one.values())) for name, one in results.items()]
        draw_plot(Plot("tokens that are decoded", "PSNR of held-out images, dB", lines, log_across=True), figure)


if __name__ == "__main__":
    main()
