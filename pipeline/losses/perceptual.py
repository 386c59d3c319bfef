"""Distance between images in the feature maps of a frozen network."""

from torch import Tensor, nn

from pipeline.losses.base import Loss
from pipeline.nn.feature_distance import perceptual_distance
from pipeline.tokenizers.base import TokenizerOutput


class Perceptual(Loss):
    """`perceptual`: LPIPS (Zhang et al., arXiv:1801.03924) in the features of `extractor`, a mean over images.

    `extractor` is frozen and stays in evaluation mode; `name` says which one it is ("lpips_vgg", "classifier").
    """

    terms = ("perceptual",)
    extractor_kind = "perceptual_backbone"

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor = extractor.requires_grad_(False).eval()

    @property
    def name(self) -> str:
        return self.extractor.name

    def train(self, mode: bool = True) -> "Perceptual":
        super().train(mode)
        self.extractor.eval()
        return self

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        return {"perceptual": perceptual_distance(self.extractor, images, rebuilt.images).mean()}
