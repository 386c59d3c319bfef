"""The trunk of the small classifier used in place of published vision models: feature maps, fine to coarse."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.nn.image_channels import as_rgb
from pipeline.nn.image_size import Sides, sides_of

WIDTH = 32  # channels of the first stage
MapSizes = list[tuple[int, Sides]]  # channels of each map of a network, and its height and width


class ConvolutionStages(nn.Module):
    """Images [B, C, H, W] in [-1, 1], by `as_rgb`, to the map of the stem, of half the channels, and one a stage.

    Every stage halves the side; the first has `width` channels, the second twice and all others four times as many.
    """

    def __init__(self, width: int = WIDTH, stages: int = 2, stride: int = 1):
        super().__init__()
        widths = stage_channels(width, stages)
        self.stem = conv_norm_act(3, widths[0], stride)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_norm_act(low, high, 2), conv_norm_act(high, high))
            for low, high in zip(widths, widths[1:])
        )

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w], fine to coarse."""
        maps = [self.stem(as_rgb(images))]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps


def stage_channels(width: int, stages: int) -> list[int]:
    """Of each map, the stem's first."""
    return [width // 2, *(width * 2 ** min(i, 2) for i in range(stages))]


def stem_and_stages(image_size: int | Sequence[int]) -> dict[str, int]:
    """Stride of the stem and number of stages that reduce the shorter side of images to about four."""
    size = min(sides_of(image_size))
    if size < 8:
        raise ValueError(f"the classifier needs images of 8 pixels per side or more, not {size}; raise data.size")
    stride = max(1, size // 32)
    return {"stride": stride, "stages": max(1, round(math.log2(size / stride / 4)))}


def conv_norm_act(low: int, high: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(low, high, 3, stride, 1, bias=False), nn.BatchNorm2d(high), nn.SiLU())
