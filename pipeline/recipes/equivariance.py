"""What a recipe says of codes that shrink and turn as their images do."""

from dataclasses import dataclass
from typing import Annotated

from pipeline.nn.map_transform import Filter
from pipeline.ranges import Fraction, FractionAboveZero, RangedFields
from pipeline.validation import Length, Range

Scales = Annotated[tuple[FractionAboveZero, ...], Length(1)]
Turns = Annotated[tuple[Annotated[int, Range(0, 3)], ...], Length(1)]


@dataclass
class Equivariance(RangedFields):
    """Train the decoder on codes that are shrunk and turned, towards images transformed in the same way.

    EQ-VAE (Kouzelis et al., arXiv:2502.09509) and VFM-VAE (arXiv:2510.18457); the defaults are those of both.
    """

    codes: Fraction = 0.5  # fraction of the steps at which the code is transformed
    images: Fraction = 0.25  # fraction of the other steps at which the image is shrunk, before it is encoded
    scales: Scales = (0.25, 0.5, 0.75, 1.0)  # of the code's sides; one is drawn per step
    turns: Turns = (0, 1, 2, 3)  # quarter turns of the code; one is drawn per step
    image_scales: Scales = (0.25, 0.5, 0.75)  # of the image's sides at the steps of `images`
    filter: Filter = "bilinear"  # or bicubic, of images that shrink, with antialiasing
