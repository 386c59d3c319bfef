"""Trained branches beside a frozen encoder: the texture that its features lack, as further channels."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.convolution import Tower
from pipeline.nn.convolution_stages import MapSizes
from pipeline.nn.dropout import apply_dropout
from pipeline.nn.dropping_block import DroppingBlock
from pipeline.nn.embeddings import fixed_positions
from pipeline.nn.image_channels import statistics_of_channels
from pipeline.nn.image_size import sides_of, size_text
from pipeline.nn.processes import global_mean, world_size
from pipeline.nn.vision_transformer import PreNormBlock
from pipeline.ranges import (
    Colours,
    ColourScales,
    Count,
    FractionAboveZero,
    FractionBelowOne,
    ImageSize,
    Positive,
    RangedArguments,
    Whole,
)

EPSILON = 1e-6


class Residual(RangedArguments, Tower):
    """SVG's branch (Shi et al., arXiv:2510.15301): a vision transformer of the image's patches ends in `channels`.

    Its values are shifted and scaled by moments, so that they have those of the frozen features: with
    `matching: values` the mean and std of all values of a batch; with `channels` the means over channels of each
    channel's mean and std, of which the branch's own have no gradient; with `none` they stay as they are. With
    `statistics: running` the moments at evaluation are averages of training's, by `momentum`, so that a code does not
    depend on the images beside its own; with `batch` they are those of the batch at hand, always.

    In training the branch of an image is, with probability `drop`, replaced by a learned token at all positions,
    after the matching or, with `token: before`, before it. Positions are `fixed` or `learned`, and with `class_token`
    there is one token more, which leaves no output. Images in [0, 1] are normalised by the colours' `mean` and `std`;
    `hidden` is the width of the feed-forward layers, four times `width` by default, and `epsilon` that of the norms.

    In training `dropout` is that of the tokens with their positions, and of attention weights, hidden channels and
    both branches of every block.

    The released code (shiml20/SVG, fd69855) has channels, batch, before, learned, a class token, ImageNet's colours,
    1e-6 and a dropout of 0.1.
    """

    def __init__(
        self,
        maps: MapSizes,
        image_size: ImageSize,
        channels: Count = 8,
        width: Count = 384,
        depth: Count = 6,
        heads: Count = 8,
        drop: FractionBelowOne = 0.1,
        momentum: FractionAboveZero = 0.1,
        matching: Literal["values", "channels", "none"] = "values",
        statistics: Literal["running", "batch"] = "running",
        token: Literal["after", "before"] = "after",
        positions: Literal["fixed", "learned"] = "fixed",
        class_token: bool = False,
        hidden: Count | None = None,
        epsilon: Positive = 1e-5,
        mean: Colours = [0.5, 0.5, 0.5],  # noqa: B006
        std: ColourScales = [0.5, 0.5, 0.5],  # noqa: B006
        dropout: FractionBelowOne = 0.0,
        image_channels: Count = 3,
    ):
        super().__init__()
        self.channels, self.drop, self.momentum, self.dropout = channels, drop, momentum, dropout
        self.matching, self.statistics, self.token_first = matching, statistics, token == "before"
        grid = maps[-1][1]
        self.patch = sides_of(image_size)[0] // grid[0]
        self.patch_embedding = nn.Conv2d(image_channels, width, self.patch, stride=self.patch)
        self.class_token = nn.Parameter(torch.zeros(1, width)) if class_token else None
        places = class_token + grid[0] * grid[1]
        self.positions = nn.Parameter(0.02 * torch.randn(places, width)) if positions == "learned" else None
        self.blocks = nn.ModuleList(DroppingBlock(width, heads, dropout, hidden, epsilon) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, channels))
        self.token = nn.Parameter(0.02 * torch.randn(channels) if self.token_first else torch.zeros(channels))
        self.register_buffer(
            "mean", torch.tensor(statistics_of_channels(mean, image_channels))[:, None, None], persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(statistics_of_channels(std, image_channels))[:, None, None], persistent=False
        )
        if statistics == "running":
            self.register_buffer("own", torch.tensor([0.0, 1.0]))  # mean and std of the branch
            self.register_buffer("aim", torch.tensor([0.0, 1.0]))  # those of the frozen features

    @classmethod
    def check(cls, arguments: Arguments) -> int:
        """The channels that the branch adds to a code; ValueError where the arguments do not fit together."""
        maps, width, heads = (arguments[name] for name in ("maps", "width", "heads"))
        if len(maps) != 1:
            raise ValueError(f"a residual texture_branch reads the image alone; name one tap, not {len(maps)}")
        if width % heads or width % 4:
            raise ValueError(f"a width of {width} does not divide by 4 and by {heads} heads")
        return arguments.channels

    @classmethod
    def batch_statistics(cls) -> tuple[str, ...]:
        """What it computes over all images of a batch together, and so, with `loop.accumulate`, of a micro-batch."""
        return ("the moments that the texture branch matches",)

    def forward(self, images: Tensor, maps: list[Tensor], draws: Draws | None = None) -> Tensor:
        """Images [B, image_channels, H, W] and the frozen maps to [B, channels, h, w]; draws say what is dropped."""
        features, frozen = self.project(images, draws), maps[-1]
        if self.token_first:
            features = self.match_moments(self.drop_images(features, draws), frozen)
        else:
            features = self.drop_images(self.match_moments(features, frozen), draws)
        return features.mT.unflatten(2, [side // self.patch for side in images.shape[2:]])

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as the transformer reads them."""
        return (images - (2 * self.mean - 1).to(images)) / (2 * self.std).to(images)

    def project(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        """Images [B, image_channels, H, W] to the transformer's output before the matching, [B, N, channels]."""
        h = self.patch_embedding(self.normalise(images))
        grid, first = h.shape[2:], 0 if self.class_token is None else 1
        h = h.flatten(2).mT
        if first:
            h = torch.cat([self.class_token.to(h).expand(len(h), 1, -1), h], dim=1)
        h = h + self.places(grid, first).to(h)
        if draws is not None and self.dropout:
            h = apply_dropout(h, draws.keep_mask("places", tuple(h.shape[1:]), self.dropout), self.dropout)
        for i, block in enumerate(self.blocks):
            h = self.run(block, h, block.draw_masks(draws, h.shape[1], f"blocks.{i}"))
        return self.head(self.norm(h[:, first:]))

    def places(self, grid: tuple[int, int], first: int) -> Tensor:
        """Positions [first + N, width] of patches on `grid`, after `first` class tokens, whose fixed position is 0."""
        if self.positions is None:
            return F.pad(fixed_positions(grid, self.norm.normalized_shape[0]), (0, 0, first, 0))
        known, given = len(self.positions) - first, grid[0] * grid[1]
        if known != given:
            raise ValueError(f"the texture branch has positions of {known} patches, and these images have {given}")
        return self.positions

    def drop_images(self, features: Tensor, draws: Draws | None) -> Tensor:
        """`features` [B, N, channels], those of some images replaced by the learned token; none without draws."""
        if draws is None or not self.drop:
            return features
        kept = draws.keep_mask("texture", (1, 1), self.drop).to(features.device)
        return torch.where(kept, features, self.token.to(features))

    def match_moments(self, branch: Tensor, frozen: Tensor) -> Tensor:
        """`branch` [B, N, channels] with the moments of `frozen` [B, C, h, w]."""
        if self.matching == "none":
            return branch
        if self.training or self.statistics == "batch":
            own, aim = self.moments(branch), self.moments(frozen.detach().flatten(2).mT)
        else:
            own, aim = self.own, self.aim
        if self.training and self.statistics == "running":
            with torch.no_grad():
                self.own.lerp_(own.to(self.own), self.momentum)
                self.aim.lerp_(aim.to(self.aim), self.momentum)
        return (((branch.float() - own[0]) / own[1]) * aim[1] + aim[0]).to(branch.dtype)

    def moments(self, tokens: Tensor) -> Tensor:
        """The mean and std that are matched, of tokens [B, N, C]: [2] float32."""
        return moments(tokens) if self.matching == "values" else channel_moments(tokens.detach())


class Shallow(RangedArguments, nn.Module):
    """DINO-Tok's branch (arXiv:2511.20565): the first of two taps, a shallow one, through an adapter to `channels`.

    The adapter is a norm, `blocks` transformer blocks of the tap's width, and a linear layer; a tap finer than the code
    has its positions folded into channels before that. That it has blocks is inferred: the method's code is not public.
    """

    def __init__(
        self,
        maps: MapSizes,
        image_size: ImageSize,
        channels: Count = 64,
        blocks: Whole = 2,
        heads: Count = 12,
        image_channels: Count = 3,
    ):
        super().__init__()
        (width, fine), coarse = maps[0], maps[-1][1]
        self.channels, self.fold = channels, fine[0] // coarse[0]
        width = width * self.fold**2
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(PreNormBlock(width, heads) for _ in range(blocks))
        self.out = nn.Linear(width, channels)

    @classmethod
    def check(cls, arguments: Arguments) -> int:
        """The channels that the branch adds to a code; ValueError where the arguments do not fit together."""
        maps, heads = arguments.maps, arguments.heads
        if len(maps) != 2:
            raise ValueError(f"a shallow texture_branch reads the first of two taps; there are {len(maps)}")
        (width, fine), coarse = maps[0], maps[-1][1]
        if fine[0] % coarse[0] or fine[1] % coarse[1]:
            sides = " positions per side, which the code's ".join(map(size_text, (fine, coarse)))
            raise ValueError(f"the shallow tap has {sides} do not divide")
        if arguments.blocks and (width * (fine[0] // coarse[0]) ** 2) % heads:
            raise ValueError(f"{width * (fine[0] // coarse[0]) ** 2} channels do not divide by {heads} heads")
        return arguments.channels

    @classmethod
    def batch_statistics(cls) -> tuple[str, ...]:
        """As in `Residual`."""
        return ()

    def forward(self, images: Tensor, maps: list[Tensor], draws: Draws | None = None) -> Tensor:
        """The frozen encoder's maps to [B, channels, h, w]."""
        shallow = F.pixel_unshuffle(maps[0], self.fold) if self.fold > 1 else maps[0]
        h = self.norm(shallow.flatten(2).mT)
        for block in self.blocks:
            h = block(h)
        return self.out(h).mT.unflatten(2, shallow.shape[2:])


BRANCHES = {"residual": Residual, "shallow": Shallow}


@torch.no_grad()
def channel_moments(tokens: Tensor) -> Tensor:
    """Means over channels of each channel's mean and unbiased std in all processes' batches of tokens [B, N, C]: [2]
    float32, the std with 1e-6 more."""
    tokens = tokens.float().flatten(0, 1)
    count = len(tokens) * world_size()
    mean = global_mean(tokens.mean(dim=0))
    variance = global_mean((tokens - mean).square().mean(dim=0)) * count / max(1, count - 1)
    return torch.stack([mean.mean(), variance.sqrt().mean() + EPSILON])


def moments(values: Tensor) -> Tensor:
    """Mean and std of all values in all processes' batches, [2] float32, with a gradient."""
    values = values.float()
    first, second = global_mean(torch.stack([values.mean(), values.square().mean()]))
    return torch.stack([first, (second - first**2).clamp(min=0).add(EPSILON).sqrt()])
