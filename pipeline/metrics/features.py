"""The features that a recipe may measure samples on, by name."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.metrics.base import Features


class ClassifierFeatures(Features):
    """The layer before the logits of a classifier trained on the same images."""

    def __init__(self, network: nn.Module, sha256: str):
        self.network, self.sha256, self.name = network, sha256, network.name

    def describe(self) -> dict[str, Any]:
        trained = {"classifier": "to tell the classes of", "rotation": "to tell quarter turns of"}[self.name]
        return {
            "kind": self.name,
            "what": f"layer before the logits of a small network trained {trained} the training split",
            "weights_sha256": self.sha256,
            "width": self.network.config.dim,
            "resize": "none",
        }

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        return self.network.features(images).float()


class PixelFeatures(Features):
    """The pixels themselves, averaged over areas where an image is larger than `size`."""

    name = "pixels"

    def __init__(self, size: int = 8):
        self.size = size

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "what": "pixels in [-1, 1]",
            "weights_sha256": None,
            "width": 3 * self.size**2,
            "resize": f"area mean to {self.size} x {self.size} where larger",
        }

    def extract(self, images: Tensor) -> Tensor:
        if min(images.shape[2:]) > self.size:
            images = F.adaptive_avg_pool2d(images, self.size)
        return images.flatten(1).float()


KINDS = {"classifier": ClassifierFeatures, "pixels": PixelFeatures}  # what evaluate.features may name
