"""How unlike images are in their local means, contrasts and structures."""

from torch import Tensor

from pipeline.losses.base import Loss
from pipeline.nn.full_precision import full_precision
from pipeline.nn.structural_similarity import structural_similarity
from pipeline.tokenizers.base import TokenizerOutput


class StructuralSimilarity(Loss):
    """`structural_similarity`: 1 - SSIM, a mean over images: the metric of the evaluation, of pixels not rounded.

    Wang et al., 2004, with a Gaussian window of 11 pixels, on images smaller than that the largest odd one that fits,
    see `pipeline.nn.structural_similarity`. Luminance is counted from black, so images [-1, 1] are compared as [0, 2].
    """

    terms = ("structural_similarity",)

    def forward(self, images: Tensor, rebuilt: TokenizerOutput) -> dict[str, Tensor]:
        with full_precision(images):  # variances are small differences of large means
            similar = structural_similarity(images.float() + 1, rebuilt.images.float() + 1, peak=2.0)
        return {"structural_similarity": 1 - similar.mean()}
