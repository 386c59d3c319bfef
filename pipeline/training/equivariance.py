"""Codes that shrink and turn as their images do: what a step of a tokenizer's training transforms."""

from pipeline.draws import Draws
from pipeline.nn.map_transform import UNCHANGED, MapTransform
from pipeline.recipes.schema import Equivariance


def drawn(part: Equivariance | None, draws: Draws) -> tuple[MapTransform, MapTransform]:
    """What is done to the images of a step before they are encoded, and to their codes before these are decoded.

    At most one of the two changes anything. Both are of the whole global batch, whose images stay of one size.
    """
    if part is None:
        return UNCHANGED, UNCHANGED
    place, scale, turn = (float(draws.uniform_of_all(f"equivariance.{name}")[0]) for name in ("place", "scale", "turn"))
    chosen = MapTransform(part.scales[int(scale * len(part.scales))], part.turns[int(turn * len(part.turns))])
    if place < part.codes:
        return UNCHANGED, chosen
    return (chosen if place < part.codes + (1 - part.codes) * part.images else UNCHANGED), UNCHANGED
