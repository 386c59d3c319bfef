"""Distance between images in the logits of a frozen classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.losses.base import ExtractorLoss
from pipeline.tokenizers.base import TokenizerOutput


class LogitDistance(ExtractorLoss):
    """`logit_distance`: squared difference of a classifier's logits, a mean over images and classes.

    The perceptual term of TiTok's second stage, with weight 0.1 (Yu et al., arXiv:2406.07550), and beside LPIPS of
    TA-TiTok (arXiv:2501.07730), both of ConvNeXt-S. `teacher` chooses the classifier, see
    `pipeline.frozen.image_logits`; the gradient goes through it to the rebuilt images.
    """

    terms = ("logit_distance",)
    extractor_kind = "image_logits"

    def __init__(self, extractor: nn.Module, teacher: str = "auto"):
        super().__init__(extractor)
        self.teacher = teacher

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        with torch.no_grad():
            targets = self.extractor(images).float()
        return {"logit_distance": F.mse_loss(self.extractor(rebuilt.images).float(), targets)}
