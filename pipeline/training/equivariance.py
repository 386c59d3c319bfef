"""Codes that shrink and turn as their images do: what a step of a tokenizer's training transforms."""

from pipeline.draws import Draws
from pipeline.nn.map_transform import UNCHANGED, MapTransform
from pipeline.recipes.equivariance import Equivariance


def draw_transforms(settings: Equivariance | None, draws: Draws) -> tuple[MapTransform, MapTransform]:
    """The transforms of a step: of images before they are encoded, and of their codes before these are decoded.

    At most one of the two changes anything: the image is shrunk, or the code is shrunk and turned. Both are of the
    whole global batch, whose images stay of one size.
    """
    if settings is None:
        return UNCHANGED, UNCHANGED
    place, scale, turn = (float(draws.uniform_of_all(f"equivariance.{name}")[0]) for name in ("place", "scale", "turn"))
    if place < settings.codes:
        of_code = settings.scales[int(scale * len(settings.scales))], settings.turns[int(turn * len(settings.turns))]
        return UNCHANGED, MapTransform(*of_code, settings.filter)
    if place < settings.codes + (1 - settings.codes) * settings.images:
        of_image = settings.image_scales[int(scale * len(settings.image_scales))]
        return MapTransform(of_image, 0, settings.filter), UNCHANGED
    return UNCHANGED, UNCHANGED
