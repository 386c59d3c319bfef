"""Distance between images as a frozen network sees them."""

from torch import Tensor, nn

from pipeline.losses.base import Loss
from pipeline.nn.feature_distance import perceptual_distance
from pipeline.tokenizers.base import Rebuilt


class Perceptual(Loss):
    """`perceptual`: LPIPS (Zhang et al., arXiv:1801.03924) in the features of `backbone`, a mean over images.

    `backbone` is frozen here and stays in evaluation mode; `name` says which one it is ("lpips_vgg", "classifier").
    """

    terms = ("perceptual",)

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()

    @property
    def name(self) -> str:
        return self.backbone.name

    def train(self, mode: bool = True) -> "Perceptual":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor, rebuilt: Rebuilt) -> dict[str, Tensor]:
        return {"perceptual": perceptual_distance(self.backbone, images, rebuilt.images).mean()}
