"""Band error: in which frequency bands of a Haar transform reconstructions differ from their images."""

from torch import Tensor

from pipeline.features.passes import PerImage
from pipeline.features.summaries import mean
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.haar import BANDS, haar


class BandError(TokenizerMetric):
    """Mean squared error of the coefficients of each of the four bands."""

    quantities = (
        Quantity(
            "error_{}",
            "Error, {} band",
            "lower",
            "mean squared error of the {} coefficients (low or high, first across, then down)",
        ),
    )
    order = 200
    group = "Frequencies"

    def rows(self, batch: EncodedImages) -> PerImage:
        difference = batch.images - batch.reconstructions
        return {"band_error": band_power(difference), "band_power": band_power(batch.images)}

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        rows = inputs.held_out.rows
        where = {"transform": "Haar, one level, orthonormal", "pixels": "in [-1, 1]"} | inputs.of_images
        for number, band in enumerate(BANDS):
            error, power = mean(rows["band_error"][:, number]), mean(rows["band_power"][:, number])
            relative = {"share_of_the_band's_own": error / power} if power else {}
            details = {"mean_square_of_the_images": power} | relative
            yield self.quantities[0].measurement(error, where, band, details=details)


def band_power(images: Tensor) -> Tensor:
    """Mean square of the coefficients of every band, [B, 4] in float64; their mean is that of the pixels."""
    return haar(images.cpu().double()).square().mean(dim=(2, 3, 4))
