"""The mean of tokens inside the tokenizer like a vision model's class token, up to a margin."""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.components import Arguments
from pipeline.losses.base import Attachment, ExtractorLoss
from pipeline.nn.feature_head import FeatureHead, HeadShape
from pipeline.ranges import Count, Counts, NotNegative
from pipeline.tokenizers.base import TokenizerOutput


class ClassMargin(ExtractorLoss):
    """`class_margin`: relu(1 - margin - cos(mean_i W x_i, t)), a mean over images.

    x is the output of the tokenizer's module `at`, W a linear layer without bias that is trained with the tokenizer, t
    the teacher's class token of images at `teacher_size`. ResTok (arXiv:2601.03955): x is the coarsest level of the
    encoder's map, `at: encoder.summary`, and the teacher is DINOv3-L, with weight 1. The metric
    `class_cosine_<teacher>` is the mean cosine.
    """

    terms = ("class_margin",)
    extractor_kind = "class_targets"
    of_pixels = False
    of_code = True

    def __init__(
        self,
        extractor: nn.Module,
        dim: Count,
        grid: Counts,
        at: str,
        teacher: str = "auto",
        teacher_size: Count = 224,
        margin: NotNegative = 0.25,
    ):
        super().__init__(extractor)
        self.attachment, self.margin = Attachment(at), margin
        self.head = FeatureHead(dim, extractor.width, grid, HeadShape(layers=1), bias=False)

    @classmethod
    def attachment_of(cls, arguments: Arguments) -> Attachment:
        return Attachment(arguments.at)

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        mean = rebuilt.head_outputs["class_margin"].float().mean(dim=1)  # [B, width]
        cosine = F.cosine_similarity(mean, self.extractor(images).float(), dim=-1)
        self.metrics = {f"class_cosine_{self.name}": cosine.detach().mean()}
        return {"class_margin": F.relu(1 - self.margin - cosine).mean()}
