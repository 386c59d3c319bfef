"""Samples beside real images, and images of a split, as metrics are given them."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.features.moments import Moments
from pipeline.features.passes import PerImage


@dataclass(frozen=True)
class Comparison:
    """Samples beside real images, by the names of features: their rows, or the moments of these."""

    samples: dict[str, Any]
    references: dict[str, Any]
    held_out: dict[str, Any] | None  # as many real images, which give the floor; None where there are none
    described: dict[str, Any]  # the images, for protocols
    titles: dict[str, str] = field(default_factory=dict)  # of the references, where these differ by features

    def protocol(self, features: dict[str, Any], name: str) -> dict[str, Any]:
        """What protocols say of a comparison on the features `name`, which are described by `features`."""
        title = {"references": self.titles[name]} if name in self.titles else {}
        return {"features": features} | self.described | title


@dataclass(frozen=True)
class ImageSets:
    """Rows of samples and of real images of both splits."""

    samples: PerImage
    held_out: PerImage  # empty where there are none
    train: PerImage
    captions: tuple[str, ...] = ()  # that the rows `captions` of all images number


@dataclass(frozen=True)
class ImageSet:
    """What is known of the images of a split, and what protocols say of them."""

    rows: PerImage
    protocol: dict[str, Any]
    moments: dict[str, Moments] = field(default_factory=dict)
