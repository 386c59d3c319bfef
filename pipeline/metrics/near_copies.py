"""Whether samples repeat training images: whether they single one out, as new real images do not."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.features.extractors import FeatureExtractor, PixelFeatures
from pipeline.features.neighbours import nearest, on_device
from pipeline.features.networks import FeatureExtractors
from pipeline.features.passes import PerImage
from pipeline.metrics.base import Measurements, Quantity, SampleInputs, SampleMetric


class NearCopies(SampleMetric):
    """Fraction of samples that repeat one training image, in pixels and in the judge's features."""

    quantities = (
        Quantity(
            "near_copies_{}",
            "Near copies, {}",
            "lower",
            "fraction of samples less than half as far from their nearest training image as from the second nearest",
            "share",
        ),
    )
    fewest = 2  # nearest training images
    of_held_out = of_pairs = True
    order = 80

    def spaces(self, extractors: FeatureExtractors) -> dict[str, FeatureExtractor]:
        """The features in which nearest neighbours are looked for, by name."""
        return {"pixels": PixelFeatures(32), extractors.judge_features.name: extractors.judge_features}

    def neighbour_rows(self, images: Tensor, extractors: FeatureExtractors) -> PerImage:
        return {f"near_{name}": feature.extract(images) for name, feature in self.spaces(extractors).items()}

    def measure(self, inputs: SampleInputs) -> Measurements:
        spaces = self.spaces(inputs.extractors)
        for position, (name, feature) in enumerate(spaces.items()):
            near, device = inputs.near, inputs.extractors.device
            sets = [on_device(of[f"near_{name}"], device) for of in (near.samples, near.held_out, near.train)]
            copies = near_copies(*sets)
            samples, held_out, train = map(len, sets)
            where = {
                "images": f"{samples} samples",
                "held_out": f"{held_out} real held-out images",
                "references": f"{train} images of the training split",
                "distance": "root mean square over the features' width",
                "features": feature.describe(),
            }
            details = {
                "share_closer_than_99_percent_of_held_out": copies.closer,
                "median_distance": copies.median,
                "median_distance_of_held_out": copies.median_held_out,
            }
            more = {"held_out": copies.share_held_out, "details": details, "headline": position == len(spaces) - 1}
            yield self.quantities[0].measurement(copies.share, where | inputs.protocol, name, **more)


@dataclass(frozen=True)
class Copies:
    """A near copy lies less than half as far from its nearest training image as from the second nearest."""

    share: float  # fraction of the samples that are near copies
    share_held_out: float  # the same for new real images
    closer: (
        float  # fraction of samples nearer to a training image than all but the nearest hundredth of the new real ones
    )
    median: float  # a sample's distance to its nearest training image
    median_held_out: float


def near_copies(samples: Tensor, held_out: Tensor, train: Tensor, ratio: float = 0.5, quantile: float = 0.01) -> Copies:
    """Compare the nearest neighbours of rows [m, D] and [n, D] among the rows [k, D] of the training split.

    The ratio of the nearest to the second nearest distance tells a copy from a typical image (Yoon et al., 2023,
    "Diffusion probabilistic models generalize when they fail to memorize", with 1/3 in place of 1/2): an image in a
    crowd is near to many. Where a training image itself is there twice, its copies are not seen.
    Raises ValueError for fewer than two training images.
    """
    if len(train) < 2:
        raise ValueError("near copies need two training images or more; evaluate more images")
    near, real = nearest_two(samples, train), nearest_two(held_out, train)
    line = torch.quantile(real[:, 0], quantile, interpolation="lower")
    return Copies(
        share=_share(near[:, 0] < ratio * near[:, 1]),
        share_held_out=_share(real[:, 0] < ratio * real[:, 1]),
        closer=_share(near[:, 0] < line),
        median=near[:, 0].median().item(),
        median_held_out=real[:, 0].median().item(),
    )


def nearest_two(rows: Tensor, among: Tensor) -> Tensor:
    """Root-mean-square difference of each row [m, D] to the two nearest of [k, D], [m, 2] in float64."""
    return nearest(rows, among, 2) / rows.shape[1] ** 0.5


def _share(condition: Tensor) -> float:
    return condition.double().mean().item()
