"""Fréchet distance: how far the distribution of samples is from that of real images, in features."""

from pipeline.features.comparison import Comparison
from pipeline.features.extractors import FeatureExtractor
from pipeline.features.moments import frechet_distance
from pipeline.metrics.base import Measurements, Quantity, SampleInputs, SampleMetric

KNOWN_AS = {"inception": "FID", "inception_spatial": "sFID", "dinov2": "FD-DINOv2"}


class FrechetDistance(SampleMetric):
    """Distance between Gaussians fitted to the features of samples and of real images (arXiv:1706.08500)."""

    quantities = (
        Quantity(
            "fd_{}",
            "Fréchet distance, {}",
            "lower",
            "distance between the means and covariances of the features of samples and of real images",
        ),
    )
    needs = frozenset({"moments"})
    fewest = 2  # of a covariance
    order = 20

    def measure(self, inputs: SampleInputs) -> Measurements:
        for position, feature in enumerate(inputs.extractors.features):
            for key, number in self.on_feature(feature, inputs.moments):
                number.protocol |= inputs.protocol
                number.headline = position == 0 and key == f"fd_{feature.name}"
                yield key, number

    def on_feature(self, feature: FeatureExtractor, moments: Comparison) -> Measurements:
        """The distances by those statistics of a feature that are known of the real images."""
        for name, described in feature.statistics().items():
            if name not in moments.references:
                continue
            real, held_out = moments.references[name], moments.held_out
            value = frechet_distance(moments.samples[name], real)
            floor = frechet_distance(held_out[name], real) if held_out else None
            ratio = value / floor if floor is not None and floor > 0 else None
            title = f"Fréchet distance, {name.replace('_', ' ')}" + (f" ({KNOWN_AS[name]})" if name in KNOWN_AS else "")
            where = moments.protocol(described, feature.name)
            yield self.quantities[0].measurement(value, where, name, title=title, held_out=floor, ratio=ratio)
