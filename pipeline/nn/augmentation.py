"""Random, differentiable changes of a critic's input images: DiffAugment."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.draws import Draws

DRAWS = 10  # of an image: whether each of the three is done, and the seven numbers that say how


def augment(
    images: Tensor,
    draws: Draws,
    probability: float = 1.0,
    colour: bool = True,
    translation: float = 0.125,
    cutout: float = 0.5,
) -> Tensor:
    """Images [B, C, H, W] in [-1, 1], each under its own draws: Zhao et al., arXiv:2006.10738.

    In this order: `colour`, a shift of brightness by up to 0.5, then saturation times 0 to 2 and contrast times 0.5 to
    1.5 about their means; a move by up to `translation` of the sides, over grey; a rectangle of `cutout` times the
    sides made grey, its centre anywhere. Each is done to an image with
    `probability`. The same draws give the same changes.
    """
    done, how = draws.uniform("augmentation", (DRAWS,)).split([3, DRAWS - 3], dim=1)
    done = (done < probability)[:, :, None, None, None]
    if colour:
        images = torch.where(done[:, 0], shift_colours(images, how[:, :3]), images)
    if translation:
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
