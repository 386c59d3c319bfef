"""Transformers of latent tokens beside an image's, whose map is halved, or doubled, between blocks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.blocks import RMSNorm, Rotary
from pipeline.nn.convolution import Tower
from pipeline.nn.embeddings import axis_angles, coordinates
from pipeline.nn.grid_transformer import PlainBlock
from pipeline.nn.image_size import Sides
from pipeline.nn.vision_transformer import learned_vectors


class Merge(nn.Module):
    """Maps [B, C, h, w] of even sides to [B, C, h / 2, w / 2]: a 3x3 convolution of stride 2 plus the mean of 2x2."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.conv(maps) + F.avg_pool2d(maps, 2)


class Split(nn.Module):
    """Maps [B, C, h, w] to [B, C, 2h, 2w]: four outputs a position of a 3x3 convolution, plus the position's own."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(maps), 2) + F.interpolate(maps, scale_factor=2.0, mode="nearest")


class ResamplingTrunk(Tower):
    """The sequence [latent tokens | image's tokens, row by row] through pre-norm blocks without biases.

    After the blocks that `places` number, 1 the first, the map of the image's tokens passes a `Merge` or a `Split`.
    RMS norms, also of queries and keys; SwiGLU of four times the width. Rotary positions have three axes of `axes`
    channels of a head: latent token i stands at (i, 0, 0), an image's token at (0, row, column) of the map that it is
    on. Instella-T2I (arXiv:2506.21022), as released.
    """

    def __init__(
        self, width: int, depth: int, heads: int, axes: Sequence[int], places: Sequence[int], resample: type[nn.Module]
    ):
        super().__init__()
        self.axes, self.places = tuple(axes), tuple(places)
        shape = {"norm": "rms", "query_key_norm": True, "hidden": 4 * width, "bias": False}
        self.blocks = nn.ModuleList(PlainBlock(width, heads, **shape) for _ in range(depth))
        self.resamplers = nn.ModuleList(resample(width) for _ in places)
        self.norm_out = RMSNorm(width)

    def mix(self, latents: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """latents [B, n, width] and maps [B, width, h, w] after all blocks, before the last norm."""
        count, resamplers = latents.shape[1], iter(self.resamplers)
        h, grid = join(latents, maps)
        rotary = mixed_rotary(count, grid, self.axes, h.device)
        for number, block in enumerate(self.blocks, start=1):
            h = self.run(block, h, rotary)
            if number in self.places:
                h, grid = join(h[:, :count], next(resamplers)(h[:, count:].mT.unflatten(2, grid)))
                rotary = mixed_rotary(count, grid, self.axes, h.device)
        return h[:, :count], h[:, count:].mT.unflatten(2, grid)


class MergingEncoder(ResamplingTrunk):
    """Images [B, channels, H, W] to the states of `tokens` learned tokens, [B, tokens, outputs]."""

    def __init__(self, tokens: int, patch_size: int, outputs: int, channels: int, width: int, **trunk: object):
        super().__init__(width, resample=Merge, **trunk)
        self.patch_embedding = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.tokens = learned_vectors(tokens, width)
        self.projection = nn.Linear(width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        latents, _ = self.mix(self.tokens.expand(len(images), -1, -1), self.patch_embedding(images))
        return self.projection(self.norm_out(latents))


class SplittingDecoder(ResamplingTrunk):
    """Latents [B, n, inputs] to the states of the image's patches, [B, h w, width], row by row.

    All begin as the same mask token, on the smallest map.
    """

    def __init__(self, inputs: int, width: int, **trunk: object):
        super().__init__(width, resample=Split, **trunk)
        self.norm_in = RMSNorm(inputs)
        self.embedding = nn.Linear(inputs, width)
        self.mask_token = learned_vectors(1, width)

    def forward(self, z: Tensor, grid: Sides) -> Tensor:
        """`grid` is that of the patches, which its Splits divide."""
        sides = [side // 2 ** len(self.places) for side in grid]
        masks = self.mask_token[0, :, None, None].expand(len(z), -1, *sides)
        _, maps = self.mix(self.embedding(self.norm_in(z)), masks)
        return self.norm_out(maps.flatten(2).mT)


def join(latents: Tensor, maps: Tensor) -> tuple[Tensor, Sides]:
    """The sequence of latents [B, n, C] and of the positions of maps [B, C, h, w], and the sides of these."""
    return torch.cat([latents, maps.flatten(2).mT.to(latents.dtype)], dim=1), tuple(maps.shape[2:])


def mixed_rotary(latents: int, grid: Sides, axes: Sequence[int], device: torch.device) -> Rotary:
    """Tables [N, D] for `rotate`, of so many latents and then of a grid, in the form of the released weights.

    Angles are made for pairs of neighbours among the D channels of a head, and used for pairs of a channel i < D / 2
    and the channel i + D / 2, which here are neighbours: the two of a pair have angles of different axes or
    frequencies, so that it is no rotation, and the tables are not `paired`.
    """
    rows = F.pad(torch.arange(latents, dtype=torch.float64, device="cpu")[:, None], (0, 2))
    places = torch.cat([rows, F.pad(coordinates(grid), (1, 0))])  # [N, 3]
    angles = axis_angles(places, axes).unflatten(1, (2, -1)).mT.flatten(1)  # 0, D / 2, 1, D / 2 + 1, ...
    return angles.cos().float().to(device), angles.sin().float().to(device), False
