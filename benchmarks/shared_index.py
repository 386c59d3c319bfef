"""What one index for two codebooks costs either half: tokenizers whose ids both halves choose, or one of them alone.

    python benchmarks/shared_index.py [--recipe digits_tokenflow] [--steps 600] [--seed 0]

The recipe's bottleneck has a `shared_index` in it. Three tokenizers are trained alike, on one thread, but for the
weights of the two distances; of held-out images the error of the rebuilt image, and the cosine of rebuilt and true
features of the teacher, which the training keeps beside the tokenizer, are printed as a table.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import torch
import torch.nn.functional as F
from trained_tokenizers import held_out_pictures, mean_psnr, temporary_folder, train_tokenizer

from pipeline.recipes.schema import Recipe
from pipeline.saved_folders import load_tokenizer
from pipeline.teachers.classifier import Classifier

VARIANTS = {"both halves": (1.0, 1.0), "the pixel half": (0.0, 1.0), "the semantic half": (1.0, 0.0)}
WEIGHT = "tokenizer.model.bottleneck.bottleneck.{}_weight={}"


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits_tokenflow")
    parser.add_argument("--steps", type=int, default=600, help="of the tokenizers' training")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(arguments: Namespace, weights: tuple[float, float]) -> tuple[Recipe, Path]:
    """The recipe with these weights of the distances, and the folder of its trained tokenizer."""
    semantic, pixel = weights
    overrides = [WEIGHT.format("semantic", semantic), WEIGHT.format("pixel", pixel), f"seed={arguments.seed}"]
    overrides += [f"tokenizer.phases.main.loop.steps={arguments.steps}", f"name=index_{semantic:g}_{pixel:g}"]
    recipe, folder = train_tokenizer(arguments.recipe, overrides)
    return recipe, folder / "tokenizer"


@torch.no_grad()
def measure(recipe: Recipe, folder: Path) -> tuple[float, float]:
    """PSNR in dB and the cosine of features, means over held-out images."""
    pictures = held_out_pictures(recipe)
    tokenizer = load_tokenizer(str(folder), recipe.name).eval()
    teacher = Classifier.from_pretrained(folder / "frozen" / "stand_in").eval()
    z = tokenizer.decoder_input(tokenizer.encode(pictures))
    cosine = F.cosine_similarity(tokenizer.rebuild_semantic(z), teacher.maps(pictures)[-1], dim=1).mean()
    return mean_psnr(pictures, tokenizer.render(z)), cosine.item()


def main() -> None:
    arguments, rows = parse(), []
    with temporary_folder():
        for title, weights in VARIANTS.items():
            error, cosine = measure(*train(arguments, weights))
            rows.append(f"| {title} | {error:.1f} | {cosine:.3f} |")
    print("\n".join(["| ids are chosen by | PSNR, dB | cosine of rebuilt features |", "|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
