"""The features that images may be measured on: what each is, and how it is extracted."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.images.eight_bits import levels
from pipeline.nn.image_channels import as_rgb
from pipeline.nn.resize import DESCRIPTIONS, RULES, resize_antialias
from pipeline.teachers.inception import SIZE, Inception
from pipeline.teachers.vision_model import VisionModel


class FeatureExtractor(ABC):
    """Turns images into rows of features; numbers on these bear its name (`fd_classifier`)."""

    name: str
    logits: str | None = None  # the name under which `extract_all` returns class logits, where it does

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a number on these features depends on: weights and their sha256, resize rule, width."""

    @abstractmethod
    def extract(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] in [-1, 1] to rows [B, D] in float32."""

    def extract_all(self, images: Tensor) -> dict[str, Tensor]:
        """All rows that one pass over images gives, by name; those of `extract` under the name of the features."""
        return {self.name: self.extract(images)}

    def statistics(self) -> dict[str, dict[str, Any]]:
        """The rows of `extract_all` whose Fréchet distance is measured, described as by `describe`."""
        return {self.name: self.describe()}


class ClassifierFeatures(FeatureExtractor):
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


class PixelFeatures(FeatureExtractor):
    """The pixels as RGB, averaged over areas where an image is larger than `size`."""

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
        images = as_rgb(images)
        if min(images.shape[2:]) > self.size:
            images = F.adaptive_avg_pool2d(images, self.size)
        return images.flatten(1).float()


class InceptionFeatures(FeatureExtractor):
    """The pooled features of the published FID; also its spatial ones (sFID) and logits, which one pass gives.

    `resize` is one of `pipeline.nn.resize.RULES`; the published distances are by tensorflow1.
    """

    name, spatial, logits = "inception", "inception_spatial", "inception_logits"

    def __init__(self, network: Inception, sha256: str, resize: str = "tensorflow1"):
        self.network, self.sha256, self.resize = network, sha256, resize

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "what": "means over places of the last block of the Inception of 2015-12-05",
            "weights_sha256": self.sha256,
            "width": 2048,
            "resize": f"{self.resize} to {SIZE} x {SIZE}: {DESCRIPTIONS[self.resize]}",
        }

    def statistics(self) -> dict[str, dict[str, Any]]:
        what = "7 channels of the first convolution of mixed_6, at 17 x 17 places, of the Inception of 2015-12-05"
        return {self.name: self.describe(), self.spatial: self.describe() | {"what": what, "width": 2023}}

    def extract(self, images: Tensor) -> Tensor:
        return self.extract_all(images)[self.name]

    @torch.no_grad()
    def extract_all(self, images: Tensor) -> dict[str, Tensor]:
        seen = self.network(RULES[self.resize](levels(as_rgb(images)), SIZE, SIZE))
        return {self.name: seen.pooled, self.spatial: seen.spatial, self.logits: seen.logits}


class VisionFeatures(FeatureExtractor):
    """The features of a published vision model of transformers, dinov2, clip or siglip, which sees images as Pillow
    resizes them, whole, to its one size."""

    def __init__(self, name: str, network: VisionModel, sha256: str):
        self.name, self.network, self.sha256 = name, network, sha256

    def describe(self) -> dict[str, Any]:
        config = self.network.model.config
        size, layers = self.network.size, config.num_hidden_layers
        return {
            "kind": self.name,
            "what": f"{self.network.family.output} of a {config.model_type} of {layers} layers of {config.hidden_size}",
            "weights_sha256": self.sha256,
            "width": self.network.dim,
            "resize": f"antialias to {size} x {size}: {DESCRIPTIONS['antialias']}",
        }

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        pixels = resize_antialias(levels(as_rgb(images)), self.network.size, self.network.size)
        return self.network.features(pixels / 127.5 - 1)
