"""The convolutional encoder and decoder of the latent diffusion autoencoders, and running them over large maps."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.nn.attention import attention

EPSILON = 1e-6  # of every group norm, as in the published checkpoints


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """As many of `groups` as divide the channels, so that narrow networks work: gcd(32, 24) = 8."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=EPSILON)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), [B, inputs, h, w] to [B, outputs, h, w]."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1 = group_norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs, groups)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, hidden_states: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(hidden_states)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.conv_shortcut(hidden_states) + h


class MapAttention(nn.Module):
    """x + attention over all positions of the map, one head, [B, C, h, w]."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = group_norm(channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list, for the key names of AutoencoderKL

    def forward(self, hidden_states: Tensor) -> Tensor:
        tokens = self.group_norm(hidden_states).flatten(2).transpose(1, 2)  # [B, N, C]
        q, k, v = (project(tokens).unsqueeze(1) for project in (self.to_q, self.to_k, self.to_v))  # [B, 1, N, C]
        mixed = self.to_out[0](attention(q, k, v).squeeze(1))
        return hidden_states + mixed.transpose(1, 2).unflatten(2, hidden_states.shape[2:])


class Downsample(nn.Module):
    """A stride-2 convolution with zeros below and to the right only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.conv(F.pad(hidden_states, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where there is any."""

    def __init__(self, widths: Sequence[int], attends: bool, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(low, high, groups) for low, high in pairwise(widths))
        if attends:
            self.attentions = nn.ModuleList(MapAttention(width, groups) for width in widths[1:])
        self.attends = attends

    def forward(self, hidden_states: Tensor) -> Tensor:
        for i, block in enumerate(self.resnets):
            hidden_states = block(hidden_states)
            if self.attends:
                hidden_states = self.attentions[i](hidden_states)
        return hidden_states


class DownLevel(Level):
    def __init__(self, widths: Sequence[int], attends: bool, groups: int, resample: bool):
        super().__init__(widths, attends, groups)
        if resample:
            self.downsamplers = nn.ModuleList([Downsample(widths[-1])])
        self.resamples = resample

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = super().forward(hidden_states)
        return self.downsamplers[0](hidden_states) if self.resamples else hidden_states


class UpLevel(Level):
    def __init__(self, widths: Sequence[int], attends: bool, groups: int, resample: bool):
        super().__init__(widths, attends, groups)
        if resample:
            self.upsamplers = nn.ModuleList([Upsample(widths[-1])])
        self.resamples = resample

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = super().forward(hidden_states)
        return self.upsamplers[0](hidden_states) if self.resamples else hidden_states


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int, attends: bool, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(width, width, groups), ResidualBlock(width, width, groups)])
        if attends:
            self.attentions = nn.ModuleList([MapAttention(width, groups)])
        self.attends = attends

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.resnets[0](hidden_states)
        if self.attends:
            hidden_states = self.attentions[0](hidden_states)
        return self.resnets[1](hidden_states)


class Tower(nn.Module):
    gradient_checkpointing = False  # ModelMixin.enable_gradient_checkpointing sets it, and the function beside it

    def run(self, block: nn.Module, hidden_states: Tensor, *others: object) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, hidden_states, *others)
        return block(hidden_states, *others)


class EncoderTrunk(Tower):
    """Images [B, channels, H, W] to a map [B, widths[-1], H / s, W / s] with s = patch * 2 ** (levels - 1).

    A patch above 1 folds patch x patch pixels into channels before the first convolution. Rombach et al.,
    arXiv:2112.10752; parameters are named as in diffusers' AutoencoderKL.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        middle_attention: bool,
        groups: int,
        patch: int = 1,
        channels: int = 3,
    ):
        super().__init__()
        self.patch = patch
        self.conv_in = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        last = len(widths) - 1
        self.down_blocks = nn.ModuleList(
            DownLevel([low, *[width] * blocks], i in attention_levels, groups, resample=i < last)
            for i, (low, width) in enumerate(pairwise([widths[0], *widths]))
        )
        self.mid_block = Middle(widths[-1], middle_attention, groups)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(F.pixel_unshuffle(images, self.patch) if self.patch > 1 else images)
        for block in self.down_blocks:
            h = self.run(block, h)
        return self.run(self.mid_block, h)


class Encoder(EncoderTrunk):
    """As its trunk, then a norm, SiLU and a convolution to features [B, outputs, H / s, W / s]."""

    def __init__(self, outputs: int, widths: Sequence[int], *trunk: Any, **options: Any):
        super().__init__(widths, *trunk, **options)
        groups = self.mid_block.resnets[0].norm1.num_groups
        self.conv_norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.conv_norm_out(super().forward(images))))


class Decoder(Tower):
    """Features [B, inputs, h, w] to images [B, channels, s h, s w]; as `Encoder`, with one more block per level."""

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        middle_attention: bool,
        groups: int,
        patch: int = 1,
        channels: int = 3,
    ):
        super().__init__()
        self.patch = patch
        self.conv_in = nn.Conv2d(inputs, widths[-1], 3, padding=1)
        self.mid_block = Middle(widths[-1], middle_attention, groups)
        coarse_to_fine = widths[::-1]
        last = len(widths) - 1
        self.up_blocks = nn.ModuleList(
            UpLevel([low, *[width] * (blocks + 1)], last - i in attention_levels, groups, resample=i < last)
            for i, (low, width) in enumerate(pairwise([coarse_to_fine[0], *coarse_to_fine]))
        )
        self.conv_norm_out = group_norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], channels * patch**2, 3, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        h = self.conv_in(hidden_states)
        h = self.run(self.mid_block, h)
        for block in self.up_blocks:
            h = self.run(block, h)
        pixels = self.conv_out(F.silu(self.conv_norm_out(h)))
        return F.pixel_shuffle(pixels, self.patch) if self.patch > 1 else pixels


def match_memory_format(maps: Tensor, kernel: Tensor) -> Tensor:
    """Channels-last maps in the layout of `kernel`; left as they are they would make all that follows channels-last."""
    return maps if kernel.is_contiguous(memory_format=torch.channels_last) else maps.contiguous()


def run_tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: tuple[int, int], unit: int = 1) -> Tensor:
    """`function` over overlapping tiles of the map x [B, C, H, W], blended linearly where they overlap.

    `tile` is the tiles' height and width; a quarter of it overlaps. Tiles begin at multiples of `unit`, the side of
    x that one cell of the smaller map covers. A map no larger than one tile is passed on whole.
    """
    rows, columns = (_starts(x.shape[2 + axis], tile[axis], unit) for axis in (0, 1))
    if len(rows) == len(columns) == 1:
        return function(x)
    total, weights = None, None
    for top, left in product(rows, columns):
        piece = function(x[:, :, top : top + tile[0], left : left + tile[1]])
        if total is None:
            scale = piece.shape[2] / min(tile[0], x.shape[2])
            total = piece.new_zeros(*piece.shape[:2], round(x.shape[2] * scale), round(x.shape[3] * scale))
            weights = torch.zeros_like(total[:1, :1])
        height, width = piece.shape[2:]
        ramp = _ramp(height).to(piece)[:, None] * _ramp(width).to(piece)  # [height, width]
        here = (..., slice(at := round(top * scale), at + height), slice(to := round(left * scale), to + width))
        total[here] += piece * ramp
        weights[here] += ramp
    return total / weights


def _starts(length: int, tile: int, unit: int) -> list[int]:
    """Where tiles begin: every three quarters of a tile, the last flush with the end."""
    step = max(unit, tile * 3 // 4 // unit * unit)
    return [*range(0, max(0, length - tile), step), max(0, length - tile)]


def _ramp(length: int) -> Tensor:
    """Weights that rise over the first quarter, stay at one and fall over the last, never zero."""
    position = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(position, position.flip(0)).mul(4 / length).clamp(max=1.0)
