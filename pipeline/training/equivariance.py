"""Codes that shrink and turn as their images do: what a step of a tokenizer's training transforms."""

from pipeline.draws import Draws
from pipeline.nn.map_transform import UNCHANGED, MapTransform
from pipeline.recipes.schema import Equivariance


def draw_transforms(settings: Equivariance | None, draws: Draws) -> tuple[MapTransform, MapTransform]:
    """The transforms of a step: of images before they are encoded, and of their codes before these are decoded.

    At most one of the two changes anything. Both are of the whole global batch, whose images stay of one size.
    """
    if settings is None:
        return UNCHANGED, UNCHANGED
    place, scale, turn = (float(draws.uniform_of_all(f"equivariance.{name}")[0]) for name in ("place", "scale", "turn"))
    scales, turns = settings.scales, settings.turns
    transform = MapTransform(scales[int(scale * len(scales))], turns[int(turn * len(turns))])
    if place < settings.codes:
        return UNCHANGED, transform
    of_images = place < settings.codes + (1 - settings.codes) * settings.images
    return (transform if of_images else UNCHANGED), UNCHANGED
