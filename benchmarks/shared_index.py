"""What one index for two codebooks costs either half: tokenizers whose ids both halves choose, or one of them alone.

    python benchmarks/shared_index.py [--recipe digits_tokenflow] [--steps 600] [--seed 0]

The recipe's bottleneck has a `shared_index` in it. Three tokenizers are trained alike, on one thread, but for the
weights of the two distances; of held-out images the error of the rebuilt image, and the cosine of rebuilt and true
features of the teacher, which the training keeps beside the tokenizer, are printed as a table.
"""

import os
import sys
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import run  # noqa: E402
from pipeline.images.eight_bits import levels  # noqa: E402
from pipeline.images.reading import Images  # noqa: E402
from pipeline.metrics.psnr import psnr  # noqa: E402
from pipeline.recipes.schema import Recipe, load  # noqa: E402
from pipeline.saved_folders import load_tokenizer  # noqa: E402
from pipeline.teachers.classifier import Classifier  # noqa: E402

VARIANTS = {"both halves": (1.0, 1.0), "the pixel half": (0.0, 1.0), "the semantic half": (1.0, 0.0)}
WEIGHT = "tokenizer.model.bottleneck.bottleneck.{}_weight={}"


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits_tokenflow")
    parser.add_argument("--steps", type=int, default=600, help="of the tokenizers' training")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(arguments: Namespace, weights: tuple[float, float], folder: Path) -> tuple[Recipe, Path]:
    """The recipe with these weights of the distances, and the folder of its trained tokenizer."""
    semantic, pixel = weights
    overrides = [WEIGHT.format("semantic", semantic), WEIGHT.format("pixel", pixel), f"seed={arguments.seed}"]
    overrides += [f"tokenizer.phases.main.loop.steps={arguments.steps}", f"name=index_{semantic:g}_{pixel:g}"]
    recipe = load(arguments.recipe, overrides)
    run.run_stages(recipe, arguments.recipe, overrides, "train_tokenizer")
    return recipe, folder / "runs" / recipe.name / "tokenizer"


@torch.no_grad()
def measure(recipe: Recipe, folder: Path) -> tuple[float, float]:
    """PSNR in dB and the cosine of features, means over held-out images."""
    images = Images(recipe.data, "held_out")
    pictures = images.plain(torch.arange(len(images))).images
    tokenizer = load_tokenizer(str(folder), recipe.name).eval()
    teacher = Classifier.from_pretrained(folder / "frozen" / "stand_in").eval()
    z = tokenizer.decoder_input(tokenizer.encode(pictures))
    cosine = F.cosine_similarity(tokenizer.rebuild_semantic(z), teacher.maps(pictures)[-1], dim=1).mean()
    return psnr(levels(pictures), levels(tokenizer.render(z).clamp(-1, 1))).mean().item(), cosine.item()


def main() -> None:
    arguments, before, rows = parse(), Path.cwd(), []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            for title, weights in VARIANTS.items():
                error, cosine = measure(*train(arguments, weights, Path(name)))
                rows.append(f"| {title} | {error:.1f} | {cosine:.3f} |")
        finally:
            os.chdir(before)
    print("\n".join(["| ids are chosen by | PSNR, dB | cosine of rebuilt features |", "|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
