"""What a caption is worth to a tokenizer that reads it: held-out images from small codes, with captions and without.

    python benchmarks/text_tokenizers.py [--source shapes] [--steps 400] [--tokens 2] [--dim 2] [--seeds 1]

TexTok, TA-TiTok and, for comparison, TiTok, which reads none, of the same size are trained alike. Held-out images are
reconstructed with their own caption, with that of another image, and with the empty one; where the encoder reads it,
too, also with another caption in the decoder alone. Shapes have captions that say form, colour, size, place and ground,
so that little is left for the code. One thread; about five minutes for a seed on an idle core.
"""

import statistics
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path

import torch
from trained_tokenizers import mean_psnr, temporary_folder, train_tokenizer

import run
from pipeline.captions.table import Captions
from pipeline.code import Condition
from pipeline.components import find
from pipeline.images.reading import Images
from pipeline.recipes.schema import Recipe, load
from pipeline.saved_folders import load_component
from pipeline.tokenizers.base import Tokenizer

KINDS = {"titok": "TiTok (no captions)", "tatitok": "TA-TiTok (decoder)", "textok": "TexTok (encoder and decoder)"}
GIVEN = ("own caption", "another's", "another's in the decoder", "empty caption")


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="shapes", help="kind of source with captions")
    parser.add_argument("--size", type=int, default=16, help="pixels of a side")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=2)
    parser.add_argument("--dim", type=int, default=2)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--encoder", default="{kind: minilm, tokens: 20}", help="the recipe's text.encoder")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=256, help="held-out images that are measured")
    return parser.parse_args()


def overrides_of(kind: str, seed: int, asked: Namespace) -> list[str]:
    """The settings of one training, over those of emoji32_textok; captions are encoded alike for all."""
    sizes = {"tokens": asked.tokens, "width": asked.width, "depth": asked.depth, "heads": 4, "patch_size": 4}
    node = ", ".join(f"{name}: {value}" for name, value in sizes.items())
    return [
        *(f"seed={seed}", f"data.source={{kind: {asked.source}}}", f"data.size={asked.size}", "generator=null"),
        *("sample.guidance=1", f"text.encoder={asked.encoder}"),
        f"tokenizer.model={{kind: {kind}, {node}, bottleneck: {{kind: gaussian, dim: {asked.dim}}}}}",
        *("tokenizer.phases.main.losses.perceptual=null", "tokenizer.phases.main.weights.perceptual=null"),
        *(f"tokenizer.phases.main.loop.steps={asked.steps}", "tokenizer.phases.main.loop.save_every=0"),
        "tokenizer.phases.main.loop.warmup=50",
    ]


def train(kind: str, seed: int, asked: Namespace) -> tuple[Tokenizer, Recipe, Path, float]:
    """The trained tokenizer, its recipe, the folder of its run, and the seconds of its training."""
    name, overrides = "emoji32_textok", [*overrides_of(kind, seed, asked), f"name=captions_{kind}_{seed}"]
    run.run_stages(load(name, overrides), name, overrides, "encode_text")
    start = time.monotonic()
    recipe, folder = train_tokenizer(name, overrides)
    seconds = time.monotonic() - start
    return load_component(find("tokenizers", kind), folder / "tokenizer").eval(), recipe, folder, seconds


@torch.no_grad()
def measure(tokenizer: Tokenizer, recipe: Recipe, root: Path, count: int) -> dict[str, float]:
    """PSNR in dB, mean over held-out images, by what they were given."""
    captions = Captions(root / "text", "held_out", drawn=False)
    images = Images(recipe.data, "held_out", captions)
    count = min(count, len(images))
    batch = images.plain(torch.arange(count))
    own = Condition(text=batch.condition.text)
    others = own[torch.arange(count).roll(count // 2 + 1)]
    empty = Condition(text=captions.table.empty.text.expand(count, -1, -1))

    def rebuild(encoder: Condition, decoder: Condition) -> float:
        return mean_psnr(batch.images, tokenizer.decode(tokenizer.encode(batch.images, encoder), decoder))

    pairs = ((own, own), (others, others), (own, others), (empty, empty))
    return {name: rebuild(*pair) for name, pair in zip(GIVEN, pairs)}


def table(results: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    yield f"| tokenizer | {' | '.join(f'{name}, dB' for name in GIVEN)} | training, s |"
    yield f"|---|{'---|' * (len(GIVEN) + 1)}"
    for kind, of_seeds in results.items():
        cells = [f"{statistics.median(one[name] for one in of_seeds):.1f}" for name in GIVEN]
        yield f"| {KINDS[kind]} | {' | '.join(cells)} | {statistics.median(one['s'] for one in of_seeds):.0f} |"


def main() -> None:
    asked = parse()
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with temporary_folder():
        for seed in range(asked.seeds):
            for kind in KINDS:
                tokenizer, recipe, root, seconds = train(kind, seed, asked)
                results[kind].append(measure(tokenizer, recipe, root, asked.images) | {"s": seconds})
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
