"""SSIM: how well brightness, contrast and structure of reconstructions agree with their images."""

from torch import Tensor

from pipeline.features.passes import PerImage
from pipeline.features.summaries import mean
from pipeline.images.eight_bits import levels
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.structural_similarity import structural_similarity


class SSIM(TokenizerMetric):
    """Structural similarity of 8-bit reconstructions."""

    quantities = (
        Quantity(
            "ssim",
            "SSIM",
            "higher",
            "agreement of local brightness, contrast and structure; 1 is equality",
        ),
    )
    order = 120
    group = report_group = "Reconstructions"

    def rows(self, batch: EncodedImages) -> PerImage:
        return {"ssim": ssim(levels(batch.images.cpu()), levels(batch.reconstructions.cpu()))}

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        window = "gaussian 11, sigma 1.5; the largest odd window that fits on smaller images"
        where = {"pixels": "rounded to 8 bits", "window": window} | inputs.of_reconstructions
        yield self.quantities[0].measurement(mean(inputs.held_out.rows["ssim"]), where)


def ssim(first: Tensor, second: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of every pair of images [B, C, H, W] in [0, 255], [B], at most 1 (Wang et al., 2004).

    Gaussian window of 11 pixels and sigma 1.5, K = (0.01, 0.03), positions where the window fits, mean over positions
    and channels. On images smaller than the window it is the largest odd window that fits, its weights again summing
    to 1.
    """
    return structural_similarity(first.double(), second.double(), 255, window, sigma)
