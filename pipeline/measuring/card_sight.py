"""What a card is made with: its settings, and the networks that look at images for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.images.reading import Images
from pipeline.measuring.eyes import Eyes
from pipeline.measuring.judge import fit_judge, judge_features
from pipeline.recipes.schema import ONLY_SPEED, Data
from pipeline.teachers.vision_model import VisionModel
from pipeline.vision.weights import digest


@dataclass
class CardSettings:
    """What `run.py card` takes; for a run, `data`, `seed` and `weights` are its recipe's."""

    data: Data
    images: int = 2000  # of each split at most
    features: tuple[str, ...] = ("classifier", "pixels")  # of Fréchet distances
    vision: str | None = None  # folder of a vision model of transformers, whose neighbours codes are compared with
    resize: Literal["tensorflow1", "antialias", "clean"] = "tensorflow1"  # of images before Inception
    noise: tuple[float, ...] = (30.0, 20.0, 10.0)  # decibels of the image over the noise
    prior_steps: int = 300  # of the small generator's training
    seed: int = 0
    weights: dict[str, str] = field(default_factory=dict)
    out: str | None = field(default=None, metadata=ONLY_SPEED)


@dataclass
class Sight:
    """What a card sees images by: the eyes of a report, and the vision model whose neighbours codes are compared to."""

    eyes: Eyes
    vision: Callable[[Tensor], Tensor]  # images to features [B, D]
    vision_described: dict[str, Any]

    @classmethod
    def of(
        cls, settings: CardSettings, train: Images, judge_folder: Path | None, device: torch.device, out: Path
    ) -> "Sight":
        """The judge is the one in `judge_folder`, else trained here and kept in `out`."""
        size, seed = settings.data.size, settings.seed
        if judge_folder is None:
            fit_judge(train, size, seed, device, out)
        folder = judge_folder or out
        eyes = Eyes.of(folder, settings.features, settings.resize, settings.weights, size, seed, device)
        if settings.vision is None:
            own = judge_features(eyes.judge, folder)
            return cls(eyes, own.extract, own.describe())
        folder = Path(settings.vision).resolve()
        model = VisionModel.load(folder).to(device)
        described = {
            "kind": folder.name,
            "what": "mean over the tokens of the last hidden state",
            "weights_sha256": [digest(path) for path in sorted(folder.glob("*.safetensors"))],
            "resize": f"bicubic, antialiased, to {model.size} x {model.size}",
        }
        return cls(eyes, model.mean_token, described)
