"""Transformers on the frames of a clip, within each frame and then along time; an image is a clip of one frame."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn

from pipeline.nn.blocks import AttentionProcessor, Rotary
from pipeline.nn.convolution import Tower
from pipeline.nn.embeddings import coordinates, register_table, rotate

Reach = Literal["frame", "window"]  # of a block's attention: all positions of a frame, or those of a square of them
Grid = tuple[int, int]

SHARPNESS = 8.0  # factor on the logits of cosine attention


class GatedFeedForward(nn.Module):
    """Layer norm, then gelu(b) * a of one linear layer's two halves, and a linear layer, both without bias."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * value)


class PositionConvolution(nn.Module):
    """A depthwise 3x3x3 convolution of [B, T, h, w, C] that sees no later frame: positions without a table."""

    def __init__(self, width: int):
        super().__init__()
        bound = 27**-0.5  # torch's for a kernel of 27 values
        self.kernel = nn.Parameter(torch.empty(width, 3, 3, 3).uniform_(-bound, bound))  # time, rows, columns
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        maps, width = x.movedim(-1, 1), x.shape[-1]  # [B, C, T, h, w]
        if maps.shape[2] == 1:  # the frames before are zero, and so is what their part of the kernel adds
            images = F.conv2d(maps[:, :, 0], self.kernel[:, None, -1], self.bias, padding=1, groups=width)
            return images[:, :, None].movedim(1, -1)
        padded = F.pad(maps, (1, 1, 1, 1, 2, 0))
        return F.conv3d(padded, self.kernel[:, None], self.bias, groups=width).movedim(1, -1)


class CosineAttention(nn.Module, AttentionModuleMixin):
    """Attention by the angles between queries and keys, each channel with a learned scale, times `SHARPNESS`.

    Queries are of the normalised input, keys and values of the input itself, as in the released code.
    """

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False  # queries read another input than keys and values

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key_value = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.query_scale = nn.Parameter(torch.ones(head_width))
        self.key_scale = nn.Parameter(torch.ones(head_width))
        self.proj = nn.Linear(heads * head_width, width, bias=False)
        self.set_processor(AttentionProcessor())

    def forward(self, x: Tensor, rotary: Rotary | None = None, causal: bool = False) -> Tensor:
        """x [B, N, width] to the same."""
        q = self.query(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, D]
        k, v = self.key_value(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        sharpness = SHARPNESS * q.shape[-1] ** 0.5  # the kernel divides by the root of D
        q = F.normalize(q, dim=-1) * (self.query_scale * sharpness)
        k = F.normalize(k, dim=-1) * self.key_scale
        mixed = self.processor(q.to(v.dtype), k.to(v.dtype), v, causal=causal)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class WindowAttention(nn.Module, AttentionModuleMixin):
    """Attention within squares of `window` positions of a side, biased by a table of how far apart two are.

    Liu et al., arXiv:2103.14030, without shifts; after a layer norm.
    """

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False  # one projection makes all three already

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.proj = nn.Linear(width, width)
        register_table(self, "offsets", window_offsets(window))
        self.set_processor(AttentionProcessor())

    def forward(self, x: Tensor) -> Tensor:
        """x [B, h, w, width] to the same; ValueError where windows do not fill it."""
        (height, width), side = x.shape[1:3], self.window
        check_windows(self.window, (height, width))
        tiles = self.norm(x).unflatten(2, (width // side, side)).unflatten(1, (height // side, side)).transpose(2, 3)
        tokens = tiles.flatten(0, 2).flatten(1, 2)  # [B * tiles, window^2, width]
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias_table[self.offsets].permute(2, 0, 1)  # [heads, window^2, window^2]
        mixed = self.processor(q, k, v, mask=bias[None].to(q.dtype)).transpose(1, 2)
        return self.proj(mixed.reshape(tiles.shape)).transpose(2, 3).flatten(1, 2).flatten(2, 3)


class SpacetimeBlock(nn.Module):
    """x + positions, attention and feed-forward layer, each added to x: [B, N, width] that is [T, h, w] of a clip.

    A `window` is the side of the squares within which attention stays; such a block has no convolution of positions.
    """

    def __init__(self, width: int, heads: int, head_width: int, hidden: int, window: int = 0):
        super().__init__()
        self.positions = None if window else PositionConvolution(width)
        self.attention = WindowAttention(width, heads, window) if window else CosineAttention(width, heads, head_width)
        self.feed_forward = GatedFeedForward(width, hidden)

    def forward(
        self, hidden_states: Tensor, shape: Sequence[int], rotary: Rotary | None = None, causal: bool = False
    ) -> Tensor:
        """hidden_states [rows, N, width]; `shape` [B, T, h, w] is how they are read as clips, see `TimeTransformer`."""
        x = hidden_states
        if self.positions is None:
            x = x + self.attention(x.unflatten(1, tuple(shape[2:]))).flatten(1, 2)
        else:
            x = x + self.positions(x.reshape(*shape, x.shape[-1])).reshape(x.shape)
            x = x + self.attention(x, rotary, causal)
        return x + self.feed_forward(x)


class FrameTransformer(Tower):
    """Blocks that mix the positions of each frame; [B, T, h, w, width] to the same, with a last norm.

    Positions are those of the convolutions, and with `rotary` also rotary ones, whose pairs of channels alternate
    between column and row.
    """

    def __init__(
        self,
        grid: Grid,
        reaches: Sequence[Reach],
        width: int,
        heads: int,
        head_width: int,
        hidden: int,
        window: int,
        rotary: bool,
    ):
        super().__init__()
        self.grid, self.head_width, self.rotary = tuple(grid), head_width, rotary
        self.blocks = nn.ModuleList(
            SpacetimeBlock(width, heads, head_width, hidden, window if reach == "window" else 0) for reach in reaches
        )
        self.norm_out = nn.LayerNorm(width, bias=False)
        cosines, sines = alternating_rotary_tables(self.grid, head_width) if rotary else (None, None)
        register_table(self, "cosines", cosines)
        register_table(self, "sines", sines)

    def forward(self, x: Tensor) -> Tensor:
        shape, rotary = x.shape[:4], None
        if self.rotary:
            given = shape[2:] == self.grid
            tables = (self.cosines, self.sines) if given else alternating_rotary_tables(shape[2:], self.head_width)
            rotary = tuple(table.to(x.device) for table in tables)
        h = x.flatten(2, 3).flatten(0, 1)  # [B T, h w, width]
        for block in self.blocks:
            h = self.run(block, h, shape, rotary)
        return self.norm_out(h).reshape(x.shape)


class TimeTransformer(Tower):
    """Blocks that mix each position's frames, no frame seeing a later one; [B, T, h, w, width] to the same.

    The convolution of positions reads the tokens, which lie in memory position by position, as if they did frame by
    frame, as the released weights were trained: of a clip that mixes places, of an image it changes nothing.
    """

    def __init__(self, depth: int, width: int, heads: int, head_width: int, hidden: int):
        super().__init__()
        self.blocks = nn.ModuleList(SpacetimeBlock(width, heads, head_width, hidden) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        by_position = x.permute(0, 2, 3, 1, 4)  # [B, h, w, T, width]
        h = by_position.flatten(0, 2)
        for block in self.blocks:
            h = self.run(block, h, x.shape[:4], None, True)
        return self.norm_out(h).reshape(by_position.shape).permute(0, 3, 1, 2, 4)


def window_offsets(window: int) -> Tensor:
    """The row of a table for each pair of positions of a square window, [window^2, window^2]."""
    places = coordinates((window, window)).long()
    apart = places[:, None] - places[None] + window - 1  # [N, N, 2], from 0
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def check_windows(window: int, grid: Grid) -> None:
    """ValueError unless squares of `window` positions fill the grid."""
    if grid[0] % window or grid[1] % window:
        raise ValueError(
            f"windows of {window}x{window} positions do not fill a map of {grid[0]}x{grid[1]}; choose another window"
        )


def alternating_rotary_tables(grid: Sequence[int], head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, head_width] for `rotate`: pair 2k turns by the column, pair 2k + 1 by the row.

    Both at frequency 10000^(-4k / head_width). ValueError when four does not divide the head width.
    """
    if head_width % 4:
        raise ValueError(f"rotary positions on two axes need a head width divisible by 4, not {head_width}")
    frequencies = 10000.0 ** (-torch.arange(0, head_width, 4, dtype=torch.float64, device="cpu") / head_width)
    angles = coordinates(grid).flip(-1)[:, None] * frequencies[:, None]  # [N, D / 4, 2]
    angles = angles.flatten(1).repeat_interleave(2, dim=-1)
    return angles.cos().float(), angles.sin().float()
