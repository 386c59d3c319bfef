"""Fréchet distance of reconstructions (rFID): how far their distribution is from that of their images, in features."""

from torch import Tensor

from pipeline.features.moments import frechet_distance
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric


class ReconstructionFrechet(TokenizerMetric):
    """Distance between Gaussians fitted to the features of reconstructions and of their images."""

    quantities = (
        Quantity(
            "rfd_{}",
            "Fréchet distance of reconstructions, {}",
            "lower",
            "distance between the means and covariances of the features of reconstructions and of their images",
        ),
    )
    fewest = 2  # of a covariance
    order = 140
    group = report_group = "Reconstructions"

    def moment_rows(self, batch: EncodedImages) -> dict[str, Tensor]:
        features = batch.extractors.features
        return {f"reconstructed_{feature.name}": feature.extract(batch.reconstructions) for feature in features}

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        moments = inputs.held_out.moments
        for feature in inputs.extractors.features:
            name = feature.name
            value = frechet_distance(moments[f"reconstructed_{name}"], moments[name])
            where = {"features": feature.describe()} | inputs.of_reconstructions
            yield self.quantities[0].measurement(value, where, name)
