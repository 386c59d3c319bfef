"""The networks that look at images when something is measured: judge, features, and the perceptual distance's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.images.reading import Images
from pipeline.measuring.evaluation import Rows
from pipeline.measuring.feature_choice import build_features
from pipeline.measuring.judge import fit_judge, judge_features, judge_seed, load_judge, perceptual_eye
from pipeline.metrics.base import Features
from pipeline.metrics.features import PixelFeatures
from pipeline.nn.feature_distance import Backbone
from pipeline.recipes.schema import Recipe
from pipeline.runs.workspace import Workspace
from pipeline.teachers.classifier import Classifier


@dataclass
class Eyes:
    """What a report, a sweep and a card see images by."""

    judge: Classifier
    features: list[Features]  # those that distances are measured on
    near: dict[str, Features]  # where near copies are looked for
    backbone: Backbone  # of the perceptual distance
    described: dict[str, dict[str, Any]]  # judge and backbone, for protocols
    device: torch.device

    @classmethod
    def of(
        cls,
        judge_folder: Path,
        features: Sequence[str],
        resize: str,
        weights: Mapping[str, str],
        size: int,
        seed: int,
        device: torch.device,
    ) -> "Eyes":
        """`judge_folder` holds the judge that was trained by `seed`, `features` and `resize` are as `evaluate` has
        them, `weights` the recipe's; images are of `size` pixels."""
        judge = load_judge(judge_folder, device)
        own = judge_features(judge, judge_folder)
        backbone, perceptual = perceptual_eye(own, weights, size)
        described = {"judge": own.describe() | {"seed": judge_seed(seed)}, "perceptual": perceptual}
        near = {"near_pixels": PixelFeatures(32), f"near_{own.name}": own}
        built = build_features(features, weights, resize, device, own)
        return cls(judge, built, near, backbone, described, device)

    @torch.no_grad()
    def see(self, images: Tensor) -> Rows:
        """The rows of images [B, 3, H, W] in [-1, 1] under every name that a number of samples needs."""
        images = images.to(self.device)
        near = {name: feature.extract(images) for name, feature in self.near.items()}
        return near | self.see_features(images) | {"guess": self.judge(images).argmax(dim=1)}

    def see_features(self, images: Tensor) -> Rows:
        """The rows under the names of `features`, and what else these give of a pass."""
        images = images.to(self.device)
        return {name: rows for feature in self.features for name, rows in feature.see(images).items()}

    @property
    def logits(self) -> Features | None:
        """The features that give logits for the inception score, if any do."""
        return next((feature for feature in self.features if feature.logits), None)


def eyes_of_run(recipe: Recipe, work: Workspace, train: Images, folder: Path) -> Eyes:
    """With a classifier of the training split as the judge, kept in `folder`: that of the run's report where there is
    one, or new. Every process takes part."""
    part, device = recipe.evaluate, work.accelerator.device
    if work.accelerator.is_main_process:
        fit_judge(train, recipe.data.size, recipe.seed, device, folder, earlier=work.root / "report" / "judge")
    work.accelerator.wait_for_everyone()
    return Eyes.of(folder, part.features, part.resize, recipe.weights, recipe.data.size, recipe.seed, device)
