"""The frozen network whose features the perceptual loss compares: LPIPS-VGG where its weights are, else a stand-in."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.images import Images
from pipeline.recipe import Recipe
from pipeline.teachers.classifier import Classifier, fit
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.weights import locate

STAND_IN_IMAGES = 20_000  # at most so many train the stand-in


def perceptual_backbone(recipe: Recipe, images: Images, folder: Path, accelerator: Accelerator) -> nn.Module:
    """LPIPS-VGG when its two files are found by the rule of `pipeline.weights`, else a small classifier.

    The classifier is trained on the same images by the main process, kept in `folder/stand_in` whole or not at all, and
    named in every number that comes of it.
    """
    files = [locate(name, recipe.weights) for name in LpipsVgg.FILES]
    if all(files):
        return LpipsVgg.load(*files).to(accelerator.device)
    kept = folder / "stand_in"
    if accelerator.is_main_process and not kept.exists():
        train_stand_in(images, recipe.seed).save_pretrained(folder / "stand_in_draft")
        (folder / "stand_in_draft").rename(kept)
    accelerator.wait_for_everyone()
    return Classifier.from_pretrained(kept).requires_grad_(False).eval().to(accelerator.device)


def train_stand_in(images: Images, seed: int) -> Classifier:
    """A classifier of evenly chosen training images; of their rotations where there are no classes."""
    chosen = torch.linspace(0, len(images) - 1, min(len(images), STAND_IN_IMAGES)).long()
    batch = images.plain(chosen)
    return fit(batch.images, batch.condition.labels if batch.condition else None, images.num_classes, seed=seed)
