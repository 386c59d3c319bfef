"""The frozen network whose features the perceptual loss compares: LPIPS-VGG where its weights are, else a stand-in."""

from pathlib import Path

import torch
from torch import nn

from pipeline.images import Images
from pipeline.recipe import Recipe
from pipeline.teachers.classifier import Classifier, fit
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.weights import locate

STAND_IN_IMAGES = 20_000  # at most so many train the stand-in


def perceptual_backbone(recipe: Recipe, images: Images, folder: Path, device: torch.device) -> nn.Module:
    """LPIPS-VGG when its two files are found by the rule of `pipeline.weights`, else a small classifier.

    The classifier is trained on the same images, kept in `folder/stand_in`, and named in every number that comes of it.
    """
    files = [locate(name, recipe.weights) for name in LpipsVgg.FILES]
    if all(files):
        return LpipsVgg.load(*files).to(device)
    kept = folder / "stand_in"
    if not kept.exists():
        chosen = torch.linspace(0, len(images) - 1, min(len(images), STAND_IN_IMAGES)).long()
        batch = images.plain(chosen)
        labels = batch.condition.labels if batch.condition else None
        fit(batch.images, labels, images.num_classes, seed=recipe.seed).save_pretrained(kept)
    return Classifier.from_pretrained(kept).requires_grad_(False).eval().to(device)
