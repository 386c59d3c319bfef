"""The frozen network whose features the perceptual loss compares: LPIPS-VGG where its weights are, else a stand-in."""

from pathlib import Path

from accelerate import Accelerator
from torch import nn

from pipeline.frozen.stand_in import stand_in
from pipeline.images.reading import Images
from pipeline.recipes.schema import Recipe
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.vision.weights import locate


def perceptual_backbone(recipe: Recipe, images: Images, folder: Path, accelerator: Accelerator) -> nn.Module:
    """LPIPS-VGG when its two files are found by the rule of `pipeline.vision.weights`, else a small classifier.

    The classifier is kept in `folder/stand_in`, and named in every number that comes of it.
    """
    files = [locate(name, recipe.weights) for name in LpipsVgg.FILES]
    if all(files):
        return LpipsVgg.load(*files).to(accelerator.device)
    return stand_in(recipe, images, folder / "stand_in", accelerator)
