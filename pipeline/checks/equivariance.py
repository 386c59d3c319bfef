"""Whether a tokenizer, and the rest of a phase, can train on codes and images that are shrunk and turned."""

import torch

from pipeline.components import check
from pipeline.nn.map_transform import MapTransform
from pipeline.recipes.building import TokenizerPlan
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.equivariance import Equivariance
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.base import Tokenizer
from pipeline.validation import SettingError, at


def check_equivariance(phase: Phase, tokenizer: TokenizerPlan) -> None:
    """ValueError where codes are not on a map, a scale does not fit it, or a loss or the critic needs one size."""
    settings = phase.equivariance
    with at("equivariance"):
        check_map(settings, phase.train, tokenizer)
        check_losses_of_sizes(phase)
        if phase.adversary is not None:
            critic, arguments = check("critics", phase.adversary.critic, DERIVED["critics"], "adversary.critic")
            scales = [scale for _, scale in drawn_scales(settings)]
            needed, smallest = critic.smallest(arguments), min(tokenizer.image_shape[1:]) * min(scales)
            if smallest < needed:
                raise ValueError(
                    f"the critic needs images of {needed} pixels per side or more, and the smallest scale makes"
                    f" {smallest:g}; leave that scale out, or give the critic fewer layers"
                )


def check_map(settings: Equivariance, trained: str, tokenizer: TokenizerPlan) -> None:
    """ValueError unless the code is a map of which every scale leaves whole sides."""
    grid = tokenizer.spec.grid
    if len(grid) != 2:
        raise ValueError(
            f"only maps can be shrunk and turned, and this code has a grid of {list(grid)}; leave equivariance out, or"
            " take a tokenizer whose code is a map"
        )
    if not tokenizer.can.transforms:
        raise ValueError("this tokenizer cannot decode a transformed map; leave equivariance out, or token_drop if set")
    if trained in tokenizer.can.branches:
        raise ValueError(f"train={trained} sees images that do not turn; leave equivariance out, or set train=all")
    for name, scale in drawn_scales(settings):
        sides = [side * scale for side in grid]
        if any(abs(side - round(side)) > 1e-6 or side < 1 for side in sides):
            shrunk, whole = ("x".join(f"{side:g}" for side in each) for each in (sides, grid))
            raise SettingError(name, f": {scale:g} shrinks the code from {whole} to {shrunk}; give whole sides")


def drawn_scales(settings: Equivariance) -> list[tuple[str, float]]:
    """Every scale that training may draw, by the setting that has it; at 1 nothing changes."""
    named = [("scales", scale) for scale in settings.scales if settings.codes]
    return named + [
        ("image_scales", scale) for scale in settings.image_scales if settings.images and settings.codes < 1
    ]


def check_losses_of_sizes(phase: Phase) -> None:
    """ValueError for a loss that works on codes of one size alone."""
    for name, node in phase.losses.items():
        loss, arguments = check("losses", node, DERIVED["losses"], f"losses.{name}")
        attachment = loss.attachment_of(arguments)
        if attachment is not None and attachment.module is not None:
            raise ValueError(
                f"losses.{name}.at compares a module of the decoder, which may get a transformed code; leave"
                " equivariance or that loss out"
            )
        if phase.equivariance.images and loss.of_one_grid(arguments):
            raise ValueError(
                f"losses.{name} works on codes of one size alone; set equivariance.images=0, or leave it out"
            )


def check_scales(settings: Equivariance, tokenizer: Tokenizer) -> None:
    """ValueError where codes and images of the scales do not pass through a tokenizer, which is on the meta device."""
    (channels, *sides), spec = tokenizer.image_shape, tokenizer.spec
    for name, scale in drawn_scales(settings):
        shrink = MapTransform(scale)
        images = torch.zeros(1, channels, *(round(side * scale) for side in sides), device="meta")
        maps = shrink(torch.zeros(1, spec.dim, *spec.grid, device="meta"))
        try:
            decoded = tokenizer.decode_map(maps).shape
            if name == "image_scales":
                tokenizer.features(images)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SettingError(name, f": {scale:g} does not pass the tokenizer ({reason}); leave it out") from None
        if decoded != images.shape:
            raise SettingError(
                name, f": of a code at {scale:g} the decoder makes {list(decoded[2:])} pixels; leave it out"
            )
