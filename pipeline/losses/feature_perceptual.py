"""Distance between images in the tokens of a frozen vision model."""

from typing import Literal

import torch
from torch import Tensor

from pipeline.losses.base import Loss
from pipeline.nn.feature_distance import unit
from pipeline.teachers.base import Tap
from pipeline.tokenizers.base import Rebuilt


class FeaturePerceptual(Loss):
    """`feature_perceptual`: squared differences of patches' tokens of length one, a mean per element, then over layers.

    LPIPS's place in the training of ViTok-v2 (Na-VAE/vitok-release, with the package dino-perceptual), there of all 12
    layers of DINOv3-S with weight 500, class token and registers among the tokens, and the last before the model's
    norm. A token of C channels at an angle a from its aim adds 2 (1 - cos a) / C, which is why the weight is large.

    `tap` holds the maps of the `layers` of `teacher`, which reads images at `teacher_size`, see
    `pipeline.frozen.alignment_teacher`. It is frozen, and the gradient goes through it to the images that were made.
    The metric `perceptual_cosine_<teacher>` is the mean of cos a.
    """

    terms = ("feature_perceptual",)

    def __init__(
        self,
        tap: Tap,
        teacher: str = "auto",
        layers: list[int] = [-1],  # noqa: B006  never changed
        teacher_size: int | Literal["grid"] | None = "grid",
    ):
        super().__init__()
        self.tap = tap

    @property
    def name(self) -> str:
        """The teacher's."""
        return self.tap.name

    def forward(self, images: Tensor, rebuilt: Rebuilt) -> dict[str, Tensor]:
        with torch.no_grad():
            aims = [unit(one) for one in self.tap.maps(images)]
        made = [unit(one) for one in self.tap.maps(rebuilt.images)]
        cosines = [(one.detach() * aim).sum(dim=1).mean() for one, aim in zip(made, aims)]
        self.metrics = {f"perceptual_cosine_{self.name}": torch.stack(cosines).mean()}
        return {"feature_perceptual": torch.stack([(a - b).square().mean() for a, b in zip(made, aims)]).mean()}
