"""Channels of images: grey, RGB, or RGBA; and how networks of RGB images see the others."""

from collections.abc import Sequence

from torch import Tensor

OPAQUE = 0.5  # mean and std of alpha, as of channels in [0, 1] about which nothing is known


def as_rgb(images: Tensor) -> Tensor:
    """Images [B, 1, 3 or 4, H, W] in [-1, 1] as networks of RGB images read them, [B, 3, H, W].

    Grey is repeated, and RGBA is over white, as images are read without alpha; RGB images are the same tensor.
    """
    channels = images.shape[1]
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    if channels == 4:
        alpha = (images[:, 3:] + 1) / 2
        return images[:, :3] * alpha + (1 - alpha)
    return images


def statistics_of_channels(colours: Sequence[float], channels: int) -> list[float]:
    """A mean or std of red, green and blue in [0, 1] as one of each channel: grey has their average, alpha 0.5."""
    if channels == 1:
        return [sum(colours) / len(colours)]
    return [*colours, OPAQUE] if channels == 4 else list(colours)
