"""The classifier that stands in for weights which are not on this machine, trained on a recipe's own images."""

from pathlib import Path

import torch
from accelerate import Accelerator

from pipeline.files.writing import new_folder
from pipeline.images.ahead import read_all
from pipeline.images.reading import Images
from pipeline.recipes.schema import Recipe
from pipeline.stored_weights import check_component
from pipeline.teachers.classifier import Classifier, fit

IMAGES = 20_000  # at most so many train it


def load_stand_in(recipe: Recipe, images: Images, kept: Path, accelerator: Accelerator, dim: int = 64) -> Classifier:
    """A classifier with `dim` features, frozen and in evaluation mode; a function of the images and the recipe's seed.

    It is trained by the main process and kept in the folder `kept`, whole or not at all.
    """
    if accelerator.is_main_process and not kept.exists():
        stand_in = train_stand_in(images, recipe.seed, dim)
        with new_folder(kept) as draft:
            stand_in.save_pretrained(draft)
    accelerator.wait_for_everyone()
    check_component(Classifier, kept)
    return Classifier.from_pretrained(kept).requires_grad_(False).eval().to(accelerator.device)


def train_stand_in(images: Images, seed: int, dim: int = 64, steps: int = 300) -> Classifier:
    """A classifier of evenly chosen training images; of their rotations where there are no classes."""
    rows = torch.linspace(0, len(images) - 1, min(len(images), IMAGES)).long()
    batch = read_all(images, rows)
    labels = batch.condition.labels if batch.condition else None
    return fit(batch.images, labels, images.num_classes, seed=seed, steps=steps, dim=dim)
