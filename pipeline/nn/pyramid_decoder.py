"""VFM-VAE's decoder: blocks at growing resolutions, modulated by a style; the first also read the code as a map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.attention import attention
from pipeline.nn.convolution import Tower, match_memory_format
from pipeline.nn.image_size import Sides

HEADS = 8  # of attention
GROUPS = 32  # at most, of four channels or more
EPSILON = 1e-8  # of demodulation, and of the norm before the mapping
RATE = 0.01  # of the mapping's learning, beside the others'
KERNELS = 5, 5, 7  # of the depthwise convolutions by level, the last of all further ones
BLURS = (1, 2, 1), (1, 2, 1), (1, 2, 1), (1, 4, 6, 4, 1)  # by level, the last of all further ones

Activation = Literal["leaky_relu", "relu", "silu", "gelu", "linear"]
ACTIVATIONS = {
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "linear": nn.Identity,
}


class MapNorm(nn.GroupNorm):
    """A group norm that also takes a single image whose map is one position, as a scaled-down code's may be."""

    def forward(self, maps: Tensor) -> Tensor:
        return torch.group_norm(maps, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(channels: int, of: int = 4) -> MapNorm:
    """Groups `of` so many channels, and of more where there would be over 32."""
    groups = max(1, min(GROUPS, channels // of))
    return MapNorm(groups if channels % groups == 0 else math.gcd(groups, channels), channels)


class ScaledLinear(nn.Linear):
    """x (g W)^T + r b: a linear layer whose weights are stored at unit scale, so that Adam moves each at g's pace.

    g = rate / sqrt(inputs) and r = rate: the equalised learning rate of Karras et al., arXiv:1710.10196, section 4.1.
    """

    def __init__(self, inputs: int, outputs: int, rate: float = 1.0, bias: float = 0.0):
        super().__init__(inputs, outputs)
        self.gain, self.rate = rate * inputs**-0.5, rate
        nn.init.normal_(self.weight, std=1 / rate)
        nn.init.constant_(self.bias, bias / rate)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.gain * self.weight).to(x), (self.rate * self.bias).to(x))


class ModulatedConv(nn.Module):
    """A 1x1 convolution whose weights each image scales by its style, with a bias.

    w'_ji = s_i w_ji, and with `demodulate` w'_ji / sqrt(sum_i w'_ji^2), else w'_ji / sqrt(inputs): Karras et al.,
    arXiv:1912.04958, equations 1 and 3. s = m1 m2 + m3 with all three linear in the style: Sauer et al.,
    arXiv:2301.09515, section 3.1.
    """

    def __init__(self, inputs: int, outputs: int, style: int, demodulate: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scales, self.demodulate = ScaledLinear(style, 3 * inputs, bias=1.0), demodulate

    def scales_of(self, style: Tensor) -> Tensor:
        """[B, inputs], from the style [B, C]."""
        m1, m2, m3 = self.scales(style).chunk(3, dim=1)
        scales = m1 * m2 + m3
        return scales if self.demodulate else scales * self.weight.shape[1] ** -0.5

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        scales = self.scales_of(style)
        outputs = F.conv2d(maps * scales[:, :, None, None], self.weight)
        if self.demodulate:
            squares = scales.float().square() @ self.weight[:, :, 0, 0].float().square().T  # [B, outputs]
            outputs = outputs * (squares + EPSILON).rsqrt().to(outputs)[:, :, None, None]
        return outputs + self.bias[:, None, None].to(outputs)


class FixedNoise(nn.Module):
    """x + strength * noise: one fixed map of `sides` for all images and channels, resampled to the sides of x."""

    def __init__(self, sides: Sides):
        super().__init__()
        self.register_buffer("noise", torch.randn(sides))
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        noise = self.noise[None, None].to(maps)
        if noise.shape[2:] != maps.shape[2:]:
            noise = F.interpolate(noise, maps.shape[2:], mode="bilinear", align_corners=False)
        return maps + self.strength * noise


class ModulatedConvNeXt(nn.Module):
    """x + scale down(gelu(up(norm(depthwise(x)), style))), [B, C, h, w]: ConvNeXt's block (arXiv:2201.03545),
    modulated by a style; with `noise`, the sides of a fixed one, that is added before the norm."""

    def __init__(self, width: int, style: int, kernel: int, noise: Sides | None):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.noise = nn.Identity() if noise is None else FixedNoise(noise)
        self.norm = group_norm(width)
        self.up = ModulatedConv(width, 4 * width, style)
        self.down = nn.Conv2d(4 * width, width, 1)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-5))

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        h = self.up(self.norm(self.noise(self.depthwise(maps))), style)
        return maps + self.scale * self.down(F.gelu(h))


class ChannelNorm(nn.Module):
    """sqrt(C) scale x / |x| over the channels of tokens [B, N, C]."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1) * (len(self.scale) ** 0.5 * self.scale)


class NullKeyAttention(nn.Module):
    """Attention over positions [B, N, C] and one learned key and value per head besides; nothing has a bias."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = math.gcd(HEADS, width)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.null = nn.Parameter(torch.randn(2, self.heads, width // self.heads))

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        null_k, null_v = (one[:, None].expand(len(tokens), -1, -1, -1).to(k) for one in self.null)
        mixed = attention(q, torch.cat([null_k, k], dim=2), torch.cat([null_v, v], dim=2))
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class MapTransformer(nn.Module):
    """x + attention(norm(x)), then the same with linear, GELU, linear at four times the width, over the positions."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.attention = ChannelNorm(width), NullKeyAttention(width)
        self.norm2 = ChannelNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, maps: Tensor) -> Tensor:
        x = maps.flatten(2).mT
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return x.mT.unflatten(2, maps.shape[2:])


class Upsample(nn.Module):
    """Depthwise and pointwise convolution, four channels to one pixel each, and a fixed blur: twice the side.

    A group norm comes first, or with `norm_last` before the blur. Without `taps` there is no blur.
    """

    def __init__(self, inputs: int, outputs: int, taps: Sequence[int] | None, norm_last: bool = False):
        super().__init__()
        self.norm, self.norm_last = group_norm(outputs if norm_last else inputs), norm_last
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, 4 * outputs, 1, bias=False)
        line = None if taps is None else torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("kernel", None if line is None else line.outer(line) / line.sum() ** 2, False)

    def forward(self, maps: Tensor) -> Tensor:
        h = maps if self.norm_last else self.norm(maps)
        h = F.pixel_shuffle(self.pointwise(self.depthwise(h)), 2)
        h = self.norm(h) if self.norm_last else h
        if self.kernel is None:
            return h
        reach = len(self.kernel) // 2
        kernel = self.kernel.to(h).expand(h.shape[1], 1, -1, -1)
        return F.conv2d(F.pad(h, (reach,) * 4, mode="replicate"), kernel, groups=h.shape[1])


class ResampledCode(nn.Module):
    """The code as a map [B, inputs, h, w] at `ratio` times its side, by folding channels into positions or back."""

    def __init__(self, inputs: int, outputs: int, ratio: float, activation: Activation, mixed: int | None = None):
        super().__init__()
        self.fold = round(1 / ratio) if ratio < 1 else 1
        self.unfold = round(ratio) if ratio > 1 else 1
        mixed = outputs if mixed is None else mixed  # channels that the last layer reads
        folded, inner = inputs * self.fold**2, mixed * self.unfold**2
        self.depthwise = nn.Conv2d(folded, folded, 3, padding=1, groups=folded, bias=False)
        self.pointwise = nn.Conv2d(folded, inner, 1, bias=False)
        self.norm1, self.activation = group_norm(inner, of=1), ACTIVATIONS[activation]()
        self.mix = nn.Conv2d(mixed, outputs, 1, bias=False)
        self.norm2 = group_norm(outputs, of=1)

    def forward(self, maps: Tensor) -> Tensor:
        maps = F.pixel_unshuffle(maps, self.fold) if self.fold > 1 else maps
        h = self.activation(self.norm1(self.pointwise(self.depthwise(maps))))
        h = F.pixel_shuffle(h, self.unfold) if self.unfold > 1 else h
        return self.norm2(self.mix(h))


@dataclass(frozen=True)
class LevelShape:
    """Of one resolution: what it reads, and what it is made of."""

    below: int  # channels of the level before; 0 for the first
    code: int  # channels of the code as a map; 0 where it does not read that
    width: int
    style: int
    kernel: int
    depth: int  # modulated blocks
    attention: int  # layers of it, after these blocks
    taps: Sequence[int] | None  # of the blur
    noise: Sides | None  # sides of the fixed noise


class Level(nn.Module):
    """Twice the side of the level before: of its own features, with the code where it is read, blocks, attention.

    Gives these features and their sum with the sum of the levels before, which is upsampled by layers of its own.
    """

    def __init__(self, shape: LevelShape):
        super().__init__()
        first = shape.below == 0
        self.enter = Upsample(shape.below + shape.code, shape.width, shape.taps, norm_last=first)
        self.carry = None if first else Upsample(shape.below, shape.width, shape.taps)
        self.blocks = nn.ModuleList(
            ModulatedConvNeXt(shape.width, shape.style, shape.kernel, shape.noise) for _ in range(shape.depth)
        )
        self.attention = nn.ModuleList(MapTransformer(shape.width) for _ in range(shape.attention))

    def forward(self, read: Tensor, total: Tensor | None, style: Tensor) -> tuple[Tensor, Tensor]:
        h = self.enter(read)
        for block in self.blocks:
            h = block(h, style)
        for block in self.attention:
            h = block(h)
        return h, h if self.carry is None else self.carry(total) + h


class StyleMapping(nn.Module):
    """The mean of a map [B, inputs, h, w], normed, to a style [B, outputs]: a hidden layer of that width, and a linear
    one. Both learn at a hundredth of the others' pace."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.hidden = ScaledLinear(inputs, outputs, RATE)
        self.out = ScaledLinear(outputs, outputs, RATE)

    def forward(self, maps: Tensor) -> Tensor:
        mean = maps.mean(dim=(2, 3)).float()
        mean = mean * (mean.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt()
        return self.out(F.leaky_relu(self.hidden(mean), 0.2)).to(maps.dtype)


@dataclass(frozen=True)
class PyramidShape:
    """Of a `PyramidDecoder`; the lists have an entry per level, coarse to fine, and their missing last ones are 0."""

    widths: Sequence[int]
    spatial: Sequence[int]  # channels in which the code's map is read
    depths: Sequence[int]  # modulated blocks; the last entry is of all further levels
    attention: Sequence[int]  # layers
    style: int  # channels of the style
    activation: Activation = "leaky_relu"  # of the code's map, as levels read it
    blur: bool = True
    noise: bool = False  # with the fixed noise of the release's `legacy`
    mixed: Sequence[int] | None = None  # channels of the code's map before its last layer; None: those of `spatial`

    def levels(self, first: Sides) -> list[LevelShape]:
        """The levels of a decoder whose first one has the sides `first`."""

        def entry(values: Sequence[int], i: int) -> int:
            return values[i] if i < len(values) else 0

        return [
            LevelShape(
                self.widths[i - 1] if i else 0,
                entry(self.spatial, i),
                width,
                self.style,
                KERNELS[min(i, len(KERNELS) - 1)],
                self.depths[min(i, len(self.depths) - 1)],
                entry(self.attention, i),
                BLURS[min(i, len(BLURS) - 1)] if self.blur else None,
                tuple(2 * side * 2**i for side in first) if self.noise else None,
            )
            for i, width in enumerate(self.widths)
        ]


class PyramidDecoder(Tower):
    """A map [B, inputs, h, w], whose shorter side is `side`, to images of every scale, coarse to fine: of the sides
    `first`, and twice as large each.

    A level's image is a modulated 1x1 convolution of the sum of all levels up to it; the next level reads its features
    alone. VFM-VAE, arXiv:2510.18457, after the facts of its release.
    """

    def __init__(self, inputs: int, side: int, first: Sides, shape: PyramidShape, channels: int = 3):
        super().__init__()
        self.mapping = StyleMapping(inputs, shape.style)
        self.spatial = nn.ModuleList(
            ResampledCode(inputs, code, min(first) * 2.0 ** (i - 1) / side, shape.activation, mixed)
            for i, (code, mixed) in enumerate(zip(shape.spatial, shape.mixed or shape.spatial, strict=True))
        )
        self.levels = nn.ModuleList(Level(level) for level in shape.levels(first))
        self.colours = nn.ModuleList(
            ModulatedConv(width, channels, shape.style, demodulate=False) for width in shape.widths
        )

    def forward(self, maps: Tensor) -> list[Tensor]:
        maps, style = match_memory_format(maps, self.spatial[0].pointwise.weight), self.mapping(maps)
        images, h, total = [], None, None
        for i, level in enumerate(self.levels):
            read = [] if h is None else [h]
            if i < len(self.spatial):
                read.append(self.spatial[i](maps))
            h, total = self.run(level, torch.cat(read, dim=1), total, style)
            images.append(self.colours[i](total, style))
        return images
