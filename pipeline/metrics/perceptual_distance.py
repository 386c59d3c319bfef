"""Perceptual distance: how far reconstructions are from their images in the feature maps of a network."""

from pipeline.features.passes import PerImage
from pipeline.features.summaries import mean
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.feature_distance import perceptual_distance


class PerceptualDistance(TokenizerMetric):
    """LPIPS by VGG where this machine has it, else the same distance by the judge's feature maps."""

    quantities = (
        Quantity(
            "perceptual_{}",
            "Perceptual distance, {}",
            "lower",
            "how far reconstructions are from their images in the feature maps of the {}; 0 is equality",
        ),
    )
    order = 130
    group = report_group = "Reconstructions"

    def rows(self, batch: EncodedImages) -> PerImage:
        backbone, reconstructions = batch.extractors.backbone, batch.reconstructions.clamp(-1, 1)
        return {"perceptual": perceptual_distance(backbone, batch.images, reconstructions)}

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        described = inputs.extractors.described["perceptual"]
        where = {"features": described} | inputs.of_reconstructions
        yield self.quantities[0].measurement(mean(inputs.held_out.rows["perceptual"]), where, described["kind"])
