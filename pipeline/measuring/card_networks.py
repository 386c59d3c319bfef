"""The settings of a tokenizer's card, and the frozen networks that measure images for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.features.judge import fit_judge
from pipeline.features.networks import FeatureExtractors
from pipeline.images.reading import Images
from pipeline.ranges import Count, Number, RangedFields, Seed
from pipeline.recipes.data import Data
from pipeline.recipes.evaluation import Features
from pipeline.recipes.field_metadata import ONLY_SPEED
from pipeline.recipes.weights import Weights
from pipeline.teachers.vision_model import VisionModel
from pipeline.vision.weights import digest


@dataclass
class CardSettings(RangedFields):
    """What `run.py card` takes; for a run, `data`, `seed` and `weights` are its recipe's."""

    data: Data
    images: Count = 2000  # of each split at most
    metrics: tuple[str, ...] | None = None  # by name; null: all that there are
    features: Features = ("classifier", "pixels")  # of Fréchet distances
    vision: str | None = None  # folder of a vision model of transformers, whose neighbours codes are compared with
    resize: Literal["tensorflow1", "antialias", "clean"] = "tensorflow1"  # of images before Inception
    noise: tuple[Number, ...] = (30.0, 20.0, 10.0)  # decibels of the image over the noise
    prior_steps: Count = 300  # of the small generator's training
    seed: Seed = 0
    weights: Weights = field(default_factory=Weights)
    out: str | None = field(default=None, metadata=ONLY_SPEED)


@dataclass(frozen=True)
class CardNetworks:
    """The networks that a card measures images with: those of a report, and a vision model to compare codes with."""

    extractors: FeatureExtractors
    vision: Callable[[Tensor], Tensor]  # images to features [B, D]
    vision_described: dict[str, Any]

    @classmethod
    def load(
        cls, settings: CardSettings, train: Images, judge_folder: Path | None, device: torch.device, out: Path
    ) -> "CardNetworks":
        """The judge is that in `judge_folder` where it is of these images, else it is trained; it is saved in `out`."""
        size, seed = min(settings.data.sides), settings.seed
        fit_judge(train, seed, device, out, earlier=judge_folder)
        extractors = FeatureExtractors.load(
            out, settings.features, settings.resize, settings.weights.files, size, seed, device
        )
        if settings.vision is None:
            judge_features = extractors.judge_features
            return cls(extractors, judge_features.extract, judge_features.describe())
        folder = Path(settings.vision).resolve()
        model = VisionModel.load(folder).to(device)
        described = {
            "kind": folder.name,
            "what": "mean over the tokens of the last hidden state",
            "weights_sha256": [digest(path) for path in sorted(folder.glob("*.safetensors"))],
            "resize": f"bicubic, antialiased, to {model.size} x {model.size}",
        }
        return cls(extractors, model.mean_token, described)
