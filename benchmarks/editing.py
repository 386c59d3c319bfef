"""Edits held-out digits by the pipelines of finished runs, and asks a classifier what is read in the results.

    python run.py all digits && python run.py all digits_fsq_maskgit && python run.py all digits_vq_ar
    python benchmarks/editing.py digits digits_fsq_maskgit digits_vq_ar [--images 200] [--figure editing.png]

A half of each digit, or its centre, is repainted by its own label and by the next one; then the whole digit is made
anew by the next label at several strengths. The classifier is scikit-learn's SVM on the pixels of the training split.
Printed are the fractions that it reads as the label, and the PSNR against the digit that was given. The figure has five
columns a run: the digit, its lower half masked, repainted by two seeds, and the next label at three strengths.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.svm import SVC
from torch import Generator, Tensor

from pipeline import LatentPipeline
from pipeline.features.passes import evenly_spaced
from pipeline.images.reading import Images
from pipeline.images.stored_pixels import to_pixels
from pipeline.metrics.psnr import psnr
from pipeline.recipes.schema import load
from pipeline.runs.finished import find_pipeline

SHOWN = 5  # digits of a run in the figure
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
PARTS = {"lower half": (slice(8, 16), slice(0, 16)), "upper half": (slice(0, 8), slice(0, 16))}
PARTS |= {"centre": (slice(4, 12), slice(4, 12))}
Reader = Callable[[Tensor], np.ndarray]  # images in [-1, 1] to labels
RED = torch.tensor([1.0, -1.0, -1.0])[:, None, None]


def mask_of(part: str) -> Tensor:
    """[16, 16], 1 where the part is."""
    mask = torch.zeros(16, 16)
    mask[PARTS[part]] = 1
    return mask


def train_reader() -> Reader:
    """A classifier of digits by the grey levels of the training split."""
    images, labels = pixels_of("train")
    classifier = SVC(gamma=0.01, C=10).fit(images[:, 0].flatten(1).numpy(), labels.numpy())
    return lambda images: classifier.predict(images[:, 0].flatten(1).cpu().numpy())


def pixels_of(split: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Digits [B, 3, 16, 16] in [-1, 1] and their labels [B]."""
    images = Images(load("digits").data, split)
    batch = images.plain(evenly_spaced(None, len(images), len(images) if count is None else min(count, len(images))))
    return batch.images, batch.condition.labels


def edited(pipe: LatentPipeline, images: Tensor, labels: Tensor, seed: int = 0, **settings: object) -> Tensor:
    """The images anew, in [-1, 1]; image i by seed + i."""
    generators = [Generator().manual_seed(seed + i) for i in range(len(images))]
    call = pipe(labels.tolist(), image=images, generator=generators, output_type="pt", **settings)
    return call.images.cpu() * 2 - 1


def measure(name: str, pipe: LatentPipeline, read: Reader, images: Tensor, labels: Tensor) -> None:
    """Print the two tables of a run."""
    other = (labels + 1) % 10

    def share(found: Tensor, wanted: Tensor) -> str:
        return f"{100 * float((read(found) == wanted.numpy()).mean()):.1f} %"

    def likeness(found: Tensor) -> str:
        return f"{psnr((found + 1) * 127.5, (images + 1) * 127.5).clamp(max=100).mean():.1f}"

    print(f"\n{name}\n\n| repainted | masked part black | own label | PSNR, dB | next label: read as it | as the own |")
    print("|---|---|---|---|---|---|")
    for part in PARTS:
        mask = mask_of(part)
        own, next_one = (edited(pipe, images, asked, mask=mask) for asked in (labels, other))
        black = torch.where(mask.bool(), -1.0, images)
        shares = (
            share(black, labels),
            share(own, labels),
            likeness(own),
            share(next_one, other),
            share(next_one, labels),
        )
        print(f"| {part} | {' | '.join(shares)} |")
    print("\n| strength, next label | read as it | as the own | PSNR, dB |\n|---|---|---|---|")
    for strength in STRENGTHS:
        found = edited(pipe, images, other, strength=strength)
        print(f"| {strength} | {share(found, other)} | {share(found, labels)} | {likeness(found)} |")


def rows_of_figure(pipe: LatentPipeline, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Rows of the figure, each [B, 3, 16, 16]: given, masked, repainted by two seeds, and three strengths."""
    mask, other = mask_of("lower half"), (labels + 1) % 10
    rows = [images, torch.where(mask.bool(), RED, images)]
    rows += [edited(pipe, images, labels, seed, mask=mask) for seed in (0, 100)]
    return rows + [edited(pipe, images, other, strength=strength) for strength in (0.4, 0.6, 1.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=["digits"])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    images, labels = pixels_of("held_out", arguments.images)
    read, blocks = train_reader(), []
    for name in arguments.runs:
        pipe = LatentPipeline.from_pretrained(find_pipeline(name))
        pipe.set_progress_bar_config(disable=True)
        measure(name, pipe, read, images, labels)
        blocks.append(torch.stack(rows_of_figure(pipe, images[:SHOWN], labels[:SHOWN])))
    if arguments.figure:
        rows = torch.nn.functional.pad(torch.cat(blocks, dim=1), (1, 1, 1, 1), value=1.0)  # [rows, columns, 3, 18, 18]
        sheet = rows.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
        picture = Image.fromarray(to_pixels(sheet[None])[0])
        picture.resize((picture.width * 3, picture.height * 3), Image.Resampling.NEAREST).save(arguments.figure)


if __name__ == "__main__":
    main()
