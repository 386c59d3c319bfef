"""Distance between images in the tokens of a frozen vision model."""

from typing import Literal

import torch
from torch import Tensor

from pipeline.losses.base import Loss
from pipeline.nn.feature_distance import normalize_channels
from pipeline.ranges import Count, Layers
from pipeline.teachers.base import Tap
from pipeline.tokenizers.base import TokenizerOutput


class FeaturePerceptual(Loss):
    """`feature_perceptual`: squared differences of patches' tokens of length one, a mean per element, then over layers.

    LPIPS's place in the training of ViTok-v2 (Na-VAE/vitok-release, with the package dino-perceptual), there of all 12
    layers of DINOv3-S with weight 500, class token and registers among the tokens, and the last before the model's
    norm. A token of C channels at an angle a from its aim adds 2 (1 - cos a) / C, which is why the weight is large.

    `extractor` has the maps of the `layers` of `teacher`, which reads images at `teacher_size`, see
    `pipeline.frozen.feature_maps`. It is frozen, and the gradient goes through it to the rebuilt images.
    The metric `perceptual_cosine_<teacher>` is the mean of cos a.
    """

    terms = ("feature_perceptual",)
    extractor_kind = "feature_maps"

    def __init__(
        self,
        extractor: Tap,
        teacher: str = "auto",
        layers: Layers = [-1],  # noqa: B006  never changed
        teacher_size: Count | Literal["grid"] | None = "grid",
    ):
        super().__init__()
        self.tap = extractor

    @property
    def name(self) -> str:
        """The teacher's."""
        return self.tap.name

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        with torch.no_grad():
            targets = [normalize_channels(one) for one in self.tap.maps(images)]
        rebuilt_maps = [normalize_channels(one) for one in self.tap.maps(rebuilt.images)]
        pairs = list(zip(rebuilt_maps, targets))
        cosines = [(a.detach() * b).sum(dim=1).mean() for a, b in pairs]
        self.metrics = {f"perceptual_cosine_{self.name}": torch.stack(cosines).mean()}
        return {"feature_perceptual": torch.stack([(a - b).square().mean() for a, b in pairs]).mean()}
