"""Tokenizers of recipes, trained in a folder that is deleted afterwards, for benchmarks of held-out images.

Not a benchmark itself.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the modules of this checkout

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import run  # noqa: E402
from pipeline.images.eight_bits import levels  # noqa: E402
from pipeline.images.reading import Images  # noqa: E402
from pipeline.metrics.psnr import psnr  # noqa: E402
from pipeline.recipes.schema import Recipe, load  # noqa: E402


@contextlib.contextmanager
def temporary_folder() -> Iterator[None]:
    """Work in an empty folder, on one thread; it is deleted at the end."""
    before = Path.cwd()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def train_tokenizer(name: str, overrides: Sequence[str]) -> tuple[Recipe, Path]:
    """Train the tokenizer of a recipe with these overrides; returns the recipe and the folder of its run."""
    recipe = load(name, overrides)
    run.run_stages(recipe, name, overrides, "train_tokenizer")
    return recipe, Path("runs", recipe.name).resolve()


def held_out_pictures(recipe: Recipe, count: int | None = None) -> Tensor:
    """The first held-out pictures, or all, as [B, C, H, W] in -1 ... 1."""
    images = Images(recipe.data, "held_out")
    return images.plain(torch.arange(len(images) if count is None else min(count, len(images)))).images


def mean_psnr(pictures: Tensor, rebuilt: Tensor) -> float:
    """The mean PSNR in dB of [B, C, H, W] as images of eight bits."""
    return psnr(levels(pictures), levels(rebuilt.clamp(-1, 1))).mean().item()
