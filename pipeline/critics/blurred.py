"""The critic of TiTok: convolutions whose maps are blurred before they are halved."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.components import Arguments
from pipeline.critics.base import Critic
from pipeline.nn.patch_layers import activations
from pipeline.ranges import Count

KERNEL = (1.0, 3.0, 3.0, 1.0)  # along both axes
SLOPE = 0.1  # of the leaky ReLU
GROUPS = 32  # of the group norms, at most


class Blurred(Critic):
    """The critic that TiTok's second stage is trained against (Yu et al., arXiv:2406.07550; bytedance/1d-tokenizer).

    A 5x5 convolution, then `stages` of a 3x3 convolution, a halving of the sides by blurring, a group norm and a leaky
    ReLU, with `width` channels twice and then twice as many each; of the last map the largest value of each cell of a
    grid of `grid` x `grid`, and of these a 1x1 and a 5x5 convolution to one logit each. As published 128, 3 and 16.
    Inside, pixels are [0, 1], as there.
    """

    shows_layers = True

    @register_to_config
    def __init__(self, width: Count = 128, stages: Count = 3, grid: Count = 16, channels: Count = 3):
        super().__init__()
        widths = [width, *(width * 2**i for i in range(stages))]
        self.main = nn.Sequential(nn.Conv2d(channels, width, 5, padding=2), nn.LeakyReLU(SLOPE))
        for low, high in zip(widths, widths[1:]):
            norm = nn.GroupNorm(math.gcd(GROUPS, high), high)
            self.main.extend([nn.Conv2d(low, high, 3, padding=1), HalvingBlur(), norm, nn.LeakyReLU(SLOPE)])
        last = widths[-1]
        self.main.extend([nn.AdaptiveMaxPool2d(grid), nn.Conv2d(last, last, 1), nn.LeakyReLU(SLOPE)])
        self.main.append(nn.Conv2d(last, 1, 5, padding=2))

    @classmethod
    def smallest(cls, arguments: Arguments) -> int:
        return 2**arguments.stages

    def forward(self, images: Tensor, inner: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits [B, 1, grid, grid]; with `inner` also the layers' outputs."""
        images = (images + 1) / 2
        return activations(self.main, images) if inner else self.main(images)


class HalvingBlur(nn.Module):
    """[B, C, H, W] to [B, C, ceil(H / 2), ceil(W / 2)]: every second place of a blur by 1, 3, 3, 1 over zeros."""

    def forward(self, x: Tensor) -> Tensor:
        line = torch.tensor(KERNEL, device=x.device, dtype=x.dtype) / sum(KERNEL)
        pads = [(-(-side // 2) - 1) * 2 + len(KERNEL) - side for side in reversed(x.shape[2:])]
        x = F.pad(x, [each for pad in pads for each in (pad // 2, pad - pad // 2)])
        for kernel in (line[:, None], line[None, :]):  # rows, then columns
            stride = [2 if side > 1 else 1 for side in kernel.shape]
            x = F.conv2d(x, kernel.expand(x.shape[1], 1, *kernel.shape), stride=stride, groups=x.shape[1])
        return x
