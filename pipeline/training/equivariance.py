"""Codes that shrink and turn as their images do: what a step of a tokenizer's training transforms, and where it may."""

from collections.abc import Mapping

import torch

from pipeline.code import LatentSpec
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.map_transform import UNCHANGED, MapTransform
from pipeline.recipes.schema import Equivariance, Phase
from pipeline.tokenizers.base import Tokenizer

Stated = tuple[type, Arguments]


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


def check_equivariance(
    phase: Phase,
    losses: Mapping[str, Stated],
    critic: Stated | None,
    tokenizer: Stated,
    spec: LatentSpec,
    image_size: int,
) -> None:
    """ValueError where codes have no map, its places do not scale, or the rest of the phase knows one size alone.

    The tokenizer, the losses and the critic of the phase are each a class with its arguments.
    """
    part, (cls, arguments) = phase.equivariance, tokenizer
    if len(spec.grid) != 2:
        raise ValueError(
            f"it turns maps, and tokens on a grid of {list(spec.grid)} have no places; leave it out, or take a"
            " tokenizer whose code is a map"
        )
    if not cls.takes_transforms(arguments):
        raise ValueError("the tokenizer makes no images of a transformed map; leave it out, or token_drop where it is")
    if phase.train in cls.branches:
        raise ValueError(f"what train={phase.train} sees does not turn as images do; leave it out, or set train=all")
    for scale in part.scales:
        sides = [side * scale for side in spec.grid]
        if any(abs(side - round(side)) > 1e-6 or side < 1 for side in sides):
            made = "x".join(f"{side:g}" for side in sides)
            raise ValueError(f"scale {scale:g} makes {made} places of the code's; state scales that leave whole sides")
    for name, (loss, stated) in losses.items():
        if stated.get("at") is not None:
            raise ValueError(f"losses.{name}.at is of a module that may see codes transformed; leave one of them out")
        if part.images and loss.of_one_grid(stated):
            raise ValueError(f"losses.{name} knows codes of one size alone; set equivariance.images=0, or leave it out")
    if critic is not None:
        judge, stated = critic
        smallest, size = judge.smallest(stated), image_size * min(part.scales)
        if size < smallest:
            raise ValueError(f"the critic judges images of {smallest} px or more, the smallest here are of {size:g}")


def check_passage(part: Equivariance, tokenizer: Tokenizer) -> None:
    """ValueError where codes and images of the stated scales do not pass through a tokenizer, on the meta device."""
    size, spec = tokenizer.config.image_size, tokenizer.spec
    for scale in sorted(set(part.scales) - {1.0}):
        shrunk = MapTransform(scale)
        images, maps = (
            shrunk(torch.zeros(1, *shape, device="meta")) for shape in ((3, size, size), (spec.dim, *spec.grid))
        )
        try:
            made = tokenizer.decoded(maps).shape
            if part.images:
                tokenizer.features(images)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"what is {scale:g} of its size does not pass; leave that scale out ({reason})") from None
        if made != images.shape:
            raise ValueError(f"of codes at {scale:g} of their size come {list(made[2:])} pixels; leave that scale out")
