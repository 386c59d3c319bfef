"""Trained branches beside a frozen encoder: the texture that its features lack, as further channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.convolution import Tower
from pipeline.nn.convolution_stages import MapSizes
from pipeline.nn.embeddings import fixed_positions
from pipeline.nn.processes import global_mean
from pipeline.nn.vision_transformer import PreNormBlock
from pipeline.ranges import Count, FractionAboveZero, FractionBelowOne, RangedArguments, Whole

EPSILON = 1e-6


class Residual(RangedArguments, Tower):
    """SVG's branch (Shi et al., arXiv:2510.15301): a vision transformer of the image's patches ends in `channels`.

    All its values of a batch are shifted and scaled by two numbers, so that they have mean and std of all the frozen
    features'. At evaluation the four numbers are running averages of training's, by `momentum`, so that a code does not
    depend on the images beside its own. In training the branch of an image is, with probability `drop`, replaced by a
    learned token at all positions. Positions are fixed.
    """

    def __init__(
        self,
        maps: MapSizes,
        image_size: Count,
        channels: Count = 8,
        width: Count = 384,
        depth: Count = 6,
        heads: Count = 8,
        drop: FractionBelowOne = 0.1,
        momentum: FractionAboveZero = 0.1,
    ):
        super().__init__()
        self.channels, self.drop, self.momentum = channels, drop, momentum
        self.patch = image_size // maps[-1][1]
        self.patch_embedding = nn.Conv2d(3, width, self.patch, stride=self.patch)
        self.blocks = nn.ModuleList(PreNormBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, channels))
        self.token = nn.Parameter(torch.zeros(channels))
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
        """Images [B, 3, H, W] and the frozen encoder's maps to [B, channels, h, w]; with draws, some are dropped."""
        h = self.patch_embedding(images)
        grid = h.shape[2:]
        h = h.flatten(2).mT
        h = h + fixed_positions(grid, h.shape[2]).to(h)
        for block in self.blocks:
            h = self.run(block, h)
        features = self.match_moments(self.head(self.norm(h)), maps[-1])
        if draws is not None and self.drop:
            kept = draws.keep_mask("texture", (1, 1), self.drop).to(features.device)
            features = torch.where(kept, features, self.token.to(features))
        return features.mT.unflatten(2, grid)

    def match_moments(self, branch: Tensor, frozen: Tensor) -> Tensor:
        """`branch` with mean and std of all values of `frozen`, a batch's in training; its own have a gradient."""
        own, aim = self.own, self.aim
        if self.training:
            own, aim = moments(branch), moments(frozen.detach())
            with torch.no_grad():
                self.own.lerp_(own.to(self.own), self.momentum)
                self.aim.lerp_(aim.to(self.aim), self.momentum)
        return (((branch.float() - own[0]) / own[1]) * aim[1] + aim[0]).to(branch.dtype)


class Shallow(RangedArguments, nn.Module):
    """DINO-Tok's branch (arXiv:2511.20565): the first of two taps, a shallow one, through an adapter to `channels`.

    The adapter is a norm, `blocks` transformer blocks of the tap's width, and a linear layer; a tap finer than the code
    has its positions folded into channels before that. That it has blocks is inferred: the method's code is not public.
    """

    def __init__(self, maps: MapSizes, image_size: Count, channels: Count = 64, blocks: Whole = 2, heads: Count = 12):
        super().__init__()
        (width, side), coarse = maps[0], maps[-1][1]
        self.channels, self.fold = channels, side // coarse
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
        (width, side), coarse = maps[0], maps[-1][1]
        if side % coarse:
            raise ValueError(f"the shallow tap has {side} positions per side, which the code's {coarse} do not divide")
        if arguments.blocks and (width * (side // coarse) ** 2) % heads:
            raise ValueError(f"{width * (side // coarse) ** 2} channels do not divide by {heads} heads")
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


def moments(values: Tensor) -> Tensor:
    """Mean and std of all values in all processes' batches, [2] float32, with a gradient."""
    values = values.float()
    first, second = global_mean(torch.stack([values.mean(), values.square().mean()]))
    return torch.stack([first, (second - first**2).clamp(min=0).add(EPSILON).sqrt()])
