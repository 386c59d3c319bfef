"""The convolutional encoder and decoder of MaskGIT's VQGAN, which TiTok's pixel decoder shares."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.nn.convolution import Tower, Upsample, group_norm


class ResidualBlock(nn.Module):
    """[B, inputs, h, w] to [B, outputs, h, w]: x + f(x), or where the width changes f(x) + shortcut(f(x)).

    f is norm, silu, conv, twice, without biases. The input itself is left out where the width changes: the released
    weights were trained so.
    """

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1 = group_norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = group_norm(outputs, groups)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(outputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(h))


class Level(nn.Sequential):
    """The residual blocks of one resolution, then what leads to the next."""

    def __init__(self, widths: Sequence[int], groups: int, resample: nn.Module | None):
        blocks = [ResidualBlock(low, high, groups) for low, high in pairwise(widths)]
        super().__init__(*blocks, *([resample] if resample else []))


class Encoder(Tower):
    """Images [B, channels, H, W] to features [B, outputs, H / s, W / s] with s = 2 ** (levels - 1).

    `widths` are the channels of the levels from full resolution down, `blocks` the residual blocks of each and of the
    middle; levels are joined by 2x2 mean pooling, and there is no attention. Chang et al., arXiv:2202.04200, in the
    PyTorch version of bytedance/1d-tokenizer.
    """

    def __init__(self, outputs: int, widths: Sequence[int], blocks: int, groups: int = 32, channels: int = 3):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        last = len(widths) - 1
        self.levels = nn.ModuleList(
            Level([low, *[width] * blocks], groups, nn.AvgPool2d(2) if i < last else None)
            for i, (low, width) in enumerate(pairwise([widths[0], *widths]))
        )
        self.middle = Level([widths[-1]] * (blocks + 1), groups, None)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(images)
        for level in [*self.levels, self.middle]:
            h = self.run(level, h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(Tower):
    """Features [B, inputs, h, w] to images [B, channels, s h, s w]; the mirror of `Encoder`.

    The `levels` are from coarse to fine, joined by nearest neighbours and a convolution. Nothing bounds the output; the
    released weights make pixels in [0, 1].
    """

    def __init__(self, inputs: int, widths: Sequence[int], blocks: int, groups: int = 32, channels: int = 3):
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, widths[-1], 3, padding=1)
        self.middle = Level([widths[-1]] * (blocks + 1), groups, None)
        coarse_to_fine = widths[::-1]
        last = len(widths) - 1
        self.levels = nn.ModuleList(
            Level([low, *[width] * blocks], groups, Upsample(width) if i < last else None)
            for i, (low, width) in enumerate(pairwise([coarse_to_fine[0], *coarse_to_fine]))
        )
        self.norm_out = group_norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        h = self.conv_in(features)
        for level in [self.middle, *self.levels]:
            h = self.run(level, h)
        return self.conv_out(F.silu(self.norm_out(h)))
