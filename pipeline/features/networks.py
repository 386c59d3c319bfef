"""The frozen networks that measure images: the judge, the feature extractors and the perceptual backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.features.caption_judge import CaptionJudge
from pipeline.features.choice import build_features
from pipeline.features.extractors import ClassifierFeatures, FeatureExtractor
from pipeline.features.judge import judge_features, judge_seed, load_judge, perceptual_backbone
from pipeline.features.passes import ImageRows, PerImage
from pipeline.nn.feature_distance import Backbone
from pipeline.teachers.classifier import Classifier


@dataclass
class FeatureExtractors:
    """The networks that a report, a sweep and a card measure images with."""

    judge: Classifier
    judge_features: ClassifierFeatures  # the layer before its logits
    features: list[FeatureExtractor]  # those that `evaluate.features` names
    backbone: Backbone  # of the perceptual distance
    described: dict[str, dict[str, Any]]  # judge and backbone, for protocols
    device: torch.device
    caption_judge: CaptionJudge | None = None  # where captions are measured

    @classmethod
    def load(
        cls,
        judge_folder: Path,
        features: Sequence[str],
        resize: str,
        weights: Mapping[str, str],
        shorter_side: int,
        seed: int,
        device: torch.device,
    ) -> "FeatureExtractors":
        """`judge_folder` holds the judge that was trained with `seed`; `features` and `resize` are those of
        `evaluate`, `weights` those of the recipe; images have so many pixels on the `shorter_side`."""
        judge = load_judge(judge_folder, device)
        features_of_judge = judge_features(judge, judge_folder)
        backbone, perceptual = perceptual_backbone(features_of_judge, weights, shorter_side)
        described = {"judge": features_of_judge.describe() | {"seed": judge_seed(seed)}, "perceptual": perceptual}
        built = build_features(features, weights, resize, device, features_of_judge)
        return cls(judge, features_of_judge, built, backbone, described, device)

    @torch.no_grad()
    def extract_all(self, images: Tensor) -> PerImage:
        """The rows of images [B, C, H, W] in [-1, 1] of all `features`, and what else the same passes give."""
        images = images.to(self.device)
        return {name: rows for feature in self.features for name, rows in feature.extract_all(images).items()}

    def rows(self, images: Tensor) -> ImageRows:
        """Those of `extract_all`, as passes over many images keep them: one pass of every network."""
        rows = {name: values.float() for name, values in self.extract_all(images).items()}
        wide = {feature.name: rows[feature.name] for feature in self.features}
        logits = rows[self.logits.logits] if self.logits else None
        return ImageRows({}, wide, {name: rows[name] for name in self.statistics}, logits)

    @property
    def statistics(self) -> dict[str, dict[str, Any]]:
        """The rows of `extract_all` whose Fréchet distances are measured, each described for protocols."""
        return {name: described for feature in self.features for name, described in feature.statistics().items()}

    @property
    def logits(self) -> FeatureExtractor | None:
        """The features that give logits for the inception score, if any do."""
        return next((feature for feature in self.features if feature.logits), None)
