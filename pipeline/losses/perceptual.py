"""Distance between images in the feature maps of a frozen network."""

from torch import Tensor

from pipeline.losses.base import ExtractorLoss
from pipeline.nn.feature_distance import perceptual_distance
from pipeline.tokenizers.base import TokenizerOutput


class Perceptual(ExtractorLoss):
    """`perceptual`: LPIPS (Zhang et al., arXiv:1801.03924) in the features of `extractor`, a mean over images.

    The `name` of `extractor` says which one it is ("lpips_vgg", "classifier").
    """

    terms = ("perceptual",)
    extractor_kind = "perceptual_backbone"

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        return {"perceptual": perceptual_distance(self.extractor, images, rebuilt.images).mean()}
