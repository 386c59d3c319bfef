"""The section `evaluate` of a recipe: what is measured, and against what."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.ranges import Count, RangedFields
from pipeline.validation import Length

Features = Annotated[tuple[str, ...], Length(1)]


@dataclass
class Evaluation(RangedFields):
    """How samples and reconstructions are measured."""

    metrics: tuple[str, ...] | None = None  # by name; null: all that there are, see `python run.py describe`
    features: Features = ("classifier", "pixels")  # also inception, dinov2, clip, siglip, given their weights
    reference: str = "train"  # what samples are measured against: train, held_out, a folder, or an .npz
    resize: Literal["tensorflow1", "antialias", "clean"] = "tensorflow1"  # of images before Inception
    neighbours: Count = 3  # of precision and recall
    images: Count = 2000  # at most so many references and reconstructions
    neighbour_images: Count = 2000  # of these, whose pairs are compared: precision, recall, near copies
    perturbed: bool = False  # also reconstructions of perturbed codes, pFID: 15 decodings of these images
