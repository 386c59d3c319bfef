"""The convolutions of PatchGAN, and their activations."""

import math
from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "group", "none"]


def patch_layers(width: int, layers: int, norm: Norm, channels: int) -> nn.Sequential:
    """Images [B, channels, H, W] to one logit per patch, [B, 1, h, w]: Isola et al., arXiv:1611.07004.

    4x4 convolutions, `layers` of them with stride 2. Widths double from `width` up to eight times it. Normal
    initialisation, std 0.02.
    """
    widths = [width * min(2**i, 8) for i in range(layers + 1)]
    network = nn.Sequential(nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2))
    for i, (low, high) in enumerate(zip(widths, widths[1:]), start=1):
        stride = 2 if i < layers else 1
        network.append(nn.Conv2d(low, high, 4, stride, 1, bias=norm == "none"))
        if norm != "none":
            network.append(nn.BatchNorm2d(high) if norm == "batch" else nn.GroupNorm(math.gcd(8, high), high))
        network.append(nn.LeakyReLU(0.2))
    network.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
    for module in network:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(module.weight, 1.0, 0.02)
    return network


def smallest_side(layers: int) -> int:
    """The smallest side of images in pixels."""
    return 3 * 2**layers  # two 4x4 convolutions of stride 1 reduce the side by a pixel each


def activations(layers: nn.Sequential, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits, and the outputs of the activations before them, [B, C, h, w]."""
    outputs, h = [], images
    for module in layers:
        h = module(h)
        if isinstance(module, nn.LeakyReLU):
            outputs.append(h)
    return h, outputs
