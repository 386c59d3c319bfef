"""What a card is made with: its settings, and the networks that look at images for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.draws import mix
from pipeline.evaluation import even
from pipeline.images import Images
from pipeline.metrics.base import Features
from pipeline.metrics.features import ClassifierFeatures, PixelFeatures
from pipeline.nn.feature_distance import Backbone
from pipeline.recipe import ONLY_SPEED, Data
from pipeline.teachers.classifier import Classifier, fit
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.teachers.vision_model import VisionModel
from pipeline.weights import digest, locate

JUDGE_VALUES = 2**28  # numbers in the images that train the judge, at most: 1 GiB
FEATURES = ("classifier", "pixels")  # that a card can measure Fréchet distances on


@dataclass
class CardSettings:
    """What `run.py card` takes; for a run, `data`, `seed` and `weights` are its recipe's."""

    data: Data
    images: int = 2000  # of each split at most
    features: tuple[str, ...] = ("classifier", "pixels")  # of Fréchet distances
    vision: str | None = None  # folder of a vision model of transformers, whose neighbours codes are compared with
    noise: tuple[float, ...] = (30.0, 20.0, 10.0)  # decibels of the image over the noise
    prior_steps: int = 300  # of the small generator's training
    seed: int = 0
    weights: dict[str, str] = field(default_factory=dict)
    out: str | None = field(default=None, metadata=ONLY_SPEED)

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.features if kind not in FEATURES]:
            raise ValueError(f"a card has no features {unknown[0]!r}; state features=[{','.join(FEATURES)}]")


@dataclass
class Sight:
    """The networks that look at images here, and how each is described."""

    features: list[Features]
    backbone: Backbone  # of the perceptual distance
    perceptual: dict[str, Any]
    vision: Callable[[Tensor], Tensor]  # images to features [B, D]
    vision_described: dict[str, Any]

    @classmethod
    def of(
        cls, settings: CardSettings, train: Images, judge_folder: Path | None, device: torch.device, out: Path
    ) -> "Sight":
        """The judge is the one in `judge_folder`, else trained here and kept in `out`."""
        folder = judge_folder or fit_judge(settings, train, device, out)
        judge = Classifier.from_pretrained(folder).requires_grad_(False).eval().to(device)
        own = ClassifierFeatures(judge, digest(folder / "diffusion_pytorch_model.safetensors"))
        made = {"classifier": own, "pixels": PixelFeatures()}
        features = [made[kind] for kind in settings.features]
        backbone, perceptual = judge, own.describe() | {"what": "feature maps of the judge, all channels alike"}
        files = [locate(name, settings.weights) for name in LpipsVgg.FILES]
        if all(files) and settings.data.size >= 16:
            backbone = LpipsVgg.load(*files).to(device)
            perceptual = {"kind": backbone.name, "weights_sha256": [digest(path) for path in files], "resize": "none"}
        if settings.vision is None:
            return cls(features, backbone, perceptual, own.extract, own.describe())
        folder = Path(settings.vision).resolve()
        model = VisionModel.load(folder).to(device)
        described = {
            "kind": folder.name,
            "what": "mean over the tokens of the last hidden state",
            "weights_sha256": [digest(path) for path in sorted(folder.glob("*.safetensors"))],
            "resize": f"bicubic, antialiased, to {model.size} x {model.size}",
        }
        return cls(features, backbone, perceptual, model.mean_token, described)


def fit_judge(settings: CardSettings, train: Images, device: torch.device, folder: Path) -> Path:
    """Train the classifier that a report of the same data and seed would, and keep it in `folder`."""
    count = min(len(train), JUDGE_VALUES // (3 * settings.data.size**2))
    batch = train.plain(even(None, len(train), count))
    labels = batch.condition.labels if batch.condition else None
    judge = fit(batch.images.to(device), labels, train.num_classes, seed=mix(settings.seed, "judge"))
    judge.save_pretrained(folder)
    return folder
