"""VFM-VAE's decoder: blocks at growing resolutions, modulated by a style; the first also read the code as a map."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.blocks import SelfAttention
from pipeline.nn.convolution import Tower, group_norm, match_memory_format

HEADS, GROUPS = 8, 32
EPSILON = 1e-8


class ModulatedConv(nn.Conv2d):
    """A 1x1 convolution whose weights each image scales by its style, with a bias.

    w'_ji = s_i w_ji, and with `demodulate` w'_ji / sqrt(sum_i w'_ji^2), where s is linear in the style and begins at 1:
    Karras et al., arXiv:1912.04958, equations 1 and 3.
    """

    def __init__(self, inputs: int, outputs: int, style: int, demodulate: bool = True):
        super().__init__(inputs, outputs, 1)
        self.scales, self.demodulate = nn.Linear(style, inputs), demodulate
        nn.init.normal_(self.scales.weight, std=style**-0.5)
        nn.init.ones_(self.scales.bias)
        nn.init.normal_(self.weight, std=inputs**-0.5)
        nn.init.zeros_(self.bias)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        scales = self.scales(style)  # [B, inputs]
        outputs = F.conv2d(maps * scales[:, :, None, None], self.weight)
        if self.demodulate:
            squares = scales.float().square() @ self.weight[:, :, 0, 0].float().square().T  # [B, outputs]
            outputs = outputs * (squares + EPSILON).rsqrt().to(outputs)[:, :, None, None]
        return outputs + self.bias[:, None, None].to(outputs)


class ModulatedConvNeXt(nn.Module):
    """x + scale down(gelu(up(norm(depthwise(x)), style))), [B, C, h, w]: ConvNeXt's block (arXiv:2201.03545),
    modulated by a style."""

    def __init__(self, width: int, style: int, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = group_norm(width, GROUPS)
        self.up = ModulatedConv(width, 4 * width, style)
        self.down = nn.Conv2d(4 * width, width, 1)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-5))

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        h = self.up(self.norm(self.depthwise(maps)), style)
        return maps + self.scale * self.down(F.gelu(h))


class MapTransformer(nn.Module):
    """x + attention(norm(x)), then the same with linear, GELU, linear at four times the width, over the positions."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, math.gcd(HEADS, width))
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, maps: Tensor) -> Tensor:
        x = maps.flatten(2).mT
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return x.mT.unflatten(2, maps.shape[2:])


class Upsample(nn.Module):
    """Norm, depthwise and pointwise convolution, four channels to one pixel each, and a fixed blur: twice the side."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm = group_norm(inputs, GROUPS)
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        self.pointwise = nn.Conv2d(inputs, 4 * outputs, 1)
        self.register_buffer("kernel", torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16, False)

    def forward(self, maps: Tensor) -> Tensor:
        h = F.pixel_shuffle(self.pointwise(self.depthwise(self.norm(maps))), 2)
        kernel = self.kernel.to(h).expand(h.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(h, (1, 1, 1, 1), mode="replicate"), kernel, groups=h.shape[1])


class ResampledCode(nn.Module):
    """The code as a map [B, inputs, h, w] at `ratio` times its side, by folding channels into positions or back."""

    def __init__(self, inputs: int, outputs: int, ratio: float):
        super().__init__()
        self.ratio = ratio
        folded = int(inputs / ratio**2)
        self.depthwise = nn.Conv2d(folded, folded, 3, padding=1, groups=folded)
        self.pointwise = nn.Conv2d(folded, outputs, 1)

    def forward(self, maps: Tensor) -> Tensor:
        if self.ratio < 1:
            maps = F.pixel_unshuffle(maps, round(1 / self.ratio))
        elif self.ratio > 1:
            maps = F.pixel_shuffle(maps, round(self.ratio))
        return self.pointwise(self.depthwise(maps))


class Level(nn.Module):
    """One resolution: the code where it is read, attention where there is any, and modulated blocks."""

    def __init__(self, inputs: int, code: int, width: int, style: int, kernel: int, depth: int, attention: int):
        super().__init__()
        self.enter = nn.Conv2d(inputs + code, width, 1)
        self.attention = nn.ModuleList(MapTransformer(width) for _ in range(attention))
        self.blocks = nn.ModuleList(ModulatedConvNeXt(width, style, kernel) for _ in range(depth))

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        h = self.enter(maps)
        for block in self.attention:
            h = block(h)
        for block in self.blocks:
            h = block(h, style)
        return h


class ScaledParameters(nn.ParameterList):
    """Parameters read through `forward`, at which offloading puts them in place: each times `rate`, in float32."""

    def forward(self, rate: float) -> list[Tensor]:
        return [rate * parameter.float() for parameter in self]


class StyleMapping(nn.Module):
    """The mean of a map [B, C, h, w] to a style [B, C]: two layers with `rate` times the others' learning rate."""

    def __init__(self, width: int, rate: float = 0.01):
        super().__init__()
        self.rate = rate
        self.weights = ScaledParameters(torch.randn(width, width) * width**-0.5 / rate for _ in range(2))
        self.biases = ScaledParameters(torch.zeros(width) for _ in range(2))

    def forward(self, maps: Tensor) -> Tensor:
        style = F.normalize(maps.mean(dim=(2, 3)).float(), dim=1) * maps.shape[1] ** 0.5
        for weight, bias in zip(self.weights.forward(self.rate), self.biases.forward(self.rate)):
            style = F.leaky_relu(F.linear(style, weight, bias), 0.2)
        return style.to(maps.dtype)


class PyramidDecoder(Tower):
    """A map [B, inputs, h, w] to images of every scale, coarse to fine.

    `widths` are those of the levels, the first at half the map's side and each at twice the side of that before;
    `spatial` the channels in which the first ones are given the map. Levels up to number `attention` have two attention
    layers each. With up the previous level's result at twice its side, a level adds up + level(up); its image is a
    modulated 1x1 convolution of that. VFM-VAE, arXiv:2510.18457, written from its description.
    """

    def __init__(self, inputs: int, widths: list[int], spatial: list[int], attention: int, depth: int):
        super().__init__()
        codes = [*spatial, *[0] * (len(widths) - len(spatial))]
        self.mapping = StyleMapping(inputs)
        self.spatial = nn.ModuleList(ResampledCode(inputs, code, 2.0 ** (i - 1)) for i, code in enumerate(spatial))
        self.ups = nn.ModuleList(Upsample(low, high) for low, high in zip(widths, widths[1:]))
        self.levels = nn.ModuleList(
            Level(width if i else 0, code, width, inputs, 5 if i < 2 else 7, depth, 2 if i < attention else 0)
            for i, (width, code) in enumerate(zip(widths, codes))
        )
        self.colours = nn.ModuleList(ModulatedConv(width, 3, inputs, demodulate=False) for width in widths)

    def forward(self, maps: Tensor) -> list[Tensor]:
        maps, style = match_memory_format(maps, self.spatial[0].pointwise.weight), self.mapping(maps)
        images, h = [], None
        for i, level in enumerate(self.levels):
            up = None if h is None else self.ups[i - 1](h)
            read = [] if up is None else [up]
            if i < len(self.spatial):
                read.append(self.spatial[i](maps))
            change = self.run(level, torch.cat(read, dim=1), style)
            h = change if up is None else up + change
            images.append(self.colours[i](h, style))
        return images
