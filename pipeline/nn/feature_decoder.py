"""Decoders of frozen features to pixels: a masked autoencoder's transformer, or the autoencoder's convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.components import Arguments
from pipeline.nn import convolution
from pipeline.nn.convolution import Tower, match_memory_format
from pipeline.nn.embeddings import fixed_positions, unpatchify
from pipeline.nn.image_channels import statistics_of_channels
from pipeline.nn.image_size import divide
from pipeline.nn.vision_transformer import PreNormBlock, initialise
from pipeline.ranges import Colours, ColourScales, Count, Counts, RangedArguments, Whole


class VitDecoder(RangedArguments, Tower):
    """RAE's decoder (Zheng et al., arXiv:2510.11690), a ViT as MAE's: features [B, inputs, h, w] to images.

    A trained class token precedes the tokens, whose positions are fixed; the last linear layer maps every token to a
    patch of pixels, whose colours in [0, 1] are normalised by `mean` and `std` (in the release ImageNet's). `hidden`
    is the width of the feed-forward layers. With `patch` a token makes so many pixels per side, and where that is not
    the stride, tokens are resized (bilinear) to the grid of the patches after the first layer.
    """

    def __init__(
        self,
        inputs: Count,
        stride: Count,
        width: Count,
        depth: Count,
        heads: Count,
        hidden: Count,
        patch: Count | None = None,
        mean: Colours = [0.5, 0.5, 0.5],  # noqa: B006
        std: ColourScales = [0.5, 0.5, 0.5],  # noqa: B006
        image_channels: Count = 3,
    ):
        super().__init__()
        self.stride, self.patch = stride, patch or stride
        self.embedding = nn.Linear(inputs, width)
        self.class_token = nn.Parameter(torch.zeros(1, width))
        self.blocks = nn.ModuleList(PreNormBlock(width, heads, hidden, epsilon=1e-12) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.pixels = nn.Linear(width, image_channels * self.patch**2)  # row in the patch, column, channel
        self.register_buffer(
            "mean", torch.tensor(statistics_of_channels(mean, image_channels))[:, None, None], persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(statistics_of_channels(std, image_channels))[:, None, None], persistent=False
        )
        initialise(self)

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        """ValueError where these constructor arguments do not fit together."""
        width, heads = arguments.width, arguments.heads
        if width % heads or width % 4:
            raise ValueError(f"a width of {width} does not divide by 4 and by {heads} heads")
        patch = arguments.patch or arguments.stride
        divide(arguments.image_size, patch, f"patch, {patch}; leave patch out")

    @property
    def last_layer(self) -> nn.Parameter:
        return self.pixels.weight

    def forward(self, maps: Tensor) -> Tensor:
        h = self.embedding(maps.flatten(2).mT)
        sides = [side * self.stride for side in maps.shape[2:]]
        grid = [side // self.patch for side in sides]
        if self.patch != self.stride:
            h = F.interpolate(h.mT.unflatten(2, maps.shape[2:]), grid, mode="bilinear").flatten(2).mT
        h = h + fixed_positions(grid, h.shape[2]).to(h)
        h = torch.cat([self.class_token.to(h).expand(len(h), 1, -1), h], dim=1)  # its position is zero
        for block in self.blocks:
            h = self.run(block, h)
        pixels = unpatchify(self.pixels(self.norm(h[:, 1:])), sides, self.patch)  # [B, H * W, channels]
        colours = pixels.mT.unflatten(2, sides)
        return colours * (2 * self.std).to(colours) + (2 * self.mean - 1).to(colours)


class ConvDecoder(RangedArguments, convolution.Decoder):
    """The convolutional decoder of latent diffusion, as SVG (arXiv:2510.15301) uses VA-VAE's.

    `width * multipliers[i]` channels at level i (0 is full resolution); further as in `conv_autoencoder`.
    """

    def __init__(
        self,
        inputs: Count,
        stride: Count,
        width: Count = 128,
        multipliers: Counts = [1, 1, 2, 2, 4],  # noqa: B006
        blocks: Whole = 2,
        attention: list[Whole] = [],  # noqa: B006
        middle_attention: bool = True,
        groups: Count = 32,
        image_channels: Count = 3,
    ):
        patch, widths = stride // 2 ** (len(multipliers) - 1), [width * m for m in multipliers]
        super().__init__(inputs, widths, blocks, attention, middle_attention, groups, patch, image_channels)

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        """ValueError where these constructor arguments do not fit together."""
        levels, stride = len(arguments.multipliers), arguments.stride
        if not levels or stride % 2 ** (levels - 1):
            raise ValueError(
                f"the {levels} multipliers double the side {levels - 1} times, but a position of the"
                f" code is {stride} pixels; name fewer"
            )

    @property
    def last_layer(self) -> nn.Parameter:
        return self.conv_out.weight

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(match_memory_format(maps, self.conv_in.weight))


DECODERS = {"vit": VitDecoder, "conv": ConvDecoder}
