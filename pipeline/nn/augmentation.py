"""Random, differentiable changes of a critic's input images: DiffAugment."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.draws import Draws

First = Literal["colour", "translation"]
DRAWS = 10  # of an image: whether each of the three is done, and the seven numbers that say how


def augment(
    images: Tensor,
    draws: Draws,
    probability: float = 1.0,
    colour: bool = True,
    translation: float = 0.125,
    cutout: float = 0.5,
    first: First = "colour",
) -> Tensor:
    """Images [B, C, H, W] in [-1, 1], each under its own draws: Zhao et al., arXiv:2006.10738.

    In this order: `colour`, a shift of brightness by up to 0.5, then saturation times 0 to 2 and contrast times 0.5 to
    1.5 about their means; a move by up to `translation` of the sides, over grey; a rectangle of `cutout` times the
    sides made grey, its centre anywhere. Each is done to an image with
    `probability`. With `first: translation` the move comes before the colours. The same draws give the same changes.
    """
    done, how = draws.uniform("augmentation", (DRAWS,)).split([3, DRAWS - 3], dim=1)
    done = (done < probability)[:, :, None, None, None]
    for kind in ("colour", "translation") if first == "colour" else ("translation", "colour"):
        if kind == "colour" and colour:
            images = torch.where(done[:, 0], shift_colours(images, how[:, :3]), images)
        if kind == "translation" and translation:
            images = torch.where(done[:, 1], translate(images, how[:, 3:5], translation), images)
    if cutout:
        images = torch.where(done[:, 2], cut_out(images, how[:, 5:], cutout), images)
    return images


def shift_colours(images: Tensor, how: Tensor) -> Tensor:
    """By how [B, 3] in [0, 1): brightness, saturation, contrast; the middle of each changes nothing."""
    brightness, saturation, contrast = how[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def translate(images: Tensor, how: Tensor, translation: float) -> Tensor:
    """By how [B, 2] in [0, 1): whole pixels along height and width, the middle of each none; what comes in is 0."""
    for axis, uniform in zip((2, 3), how.unbind(1)):
        side = images.shape[axis]
        most = int(side * translation + 0.5)
        padding = [0, 0, most, most] if axis == 2 else [most, most]
        start = (uniform * (2 * most + 1)).long()  # [B], 0 to 2 most
        positions = torch.arange(side, device=images.device) + start[:, None]  # [B, side]
        positions = positions[:, None, :, None] if axis == 2 else positions[:, None, None, :]
        images = F.pad(images, padding).gather(axis, positions.expand(images.shape))
    return images


def cut_out(images: Tensor, how: Tensor, cutout: float) -> Tensor:
    """By how [B, 2] in [0, 1): the centre along height and width of what becomes 0; at a border less of it is seen."""
    inside = []
    for axis, uniform in zip((2, 3), how.unbind(1)):
        side = images.shape[axis]
        size = int(side * cutout + 0.5)
        first = (uniform * (side + 1 - size % 2)).long() - size // 2  # [B]
        offset = torch.arange(side, device=images.device) - first[:, None]
        inside.append((offset >= 0) & (offset < size))
    rows, columns = inside
    return images.masked_fill((rows[:, None, :, None] & columns[:, None, None, :]), 0.0)


def blur(images: Tensor, strength: float) -> Tensor:
    """Images [B, C, H, W] under a kernel 2^-(t / s)^2 with s = strength sqrt(side / 2), cut at 3 s, borders reflected.

    As in the blur that fades at the start of StyleGAN-T's critic (Sauer et al., arXiv:2301.09515); 0 changes nothing.
    """
    side = max(images.shape[2:])
    sigma = strength * math.sqrt(side / 2)
    radius = min(math.floor(3 * sigma), min(images.shape[2:]) - 1)
    if radius < 1:
        return images
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp2(-((offsets / sigma) ** 2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, [radius] * 4, mode="reflect")
    columns = F.conv2d(padded, kernel[:, :, None], groups=images.shape[1])
    return F.conv2d(columns, kernel[..., None], groups=images.shape[1])


def crop_batch(images: Tensor, side: int, draws: Draws) -> Tensor:
    """With probability 1/2, and where they are larger, all images of a batch [B, C, H, W] cropped at one place."""
    if min(images.shape[2:]) <= side:
        return images
    chosen, row, column = (draws.uniform_of_all(f"crop_{name}")[0].item() for name in ("chosen", "row", "column"))
    if chosen > 0.5:
        return images
    top, left = (int(u * (size - side + 1)) for u, size in zip((row, column), images.shape[2:]))
    return images[:, :, top : top + side, left : left + side]
