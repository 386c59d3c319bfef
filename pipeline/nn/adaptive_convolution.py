"""The convolutional decoder whose every level is scaled and shifted by moments of the map that it decodes."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.nn.convolution import EPSILON, Decoder, group_norm


class AdaptiveNorm(nn.Module):
    """norm(h) * scale + shift of maps h [B, C, h, w], from the moments over positions of maps z [B, inputs, H, W].

    The scale is a linear function of z's standard deviations, the shift of its means, as in MAGVIT-v2 (Yu et al.,
    arXiv:2310.05737) in GigaTok's form.
    """

    def __init__(self, inputs: int, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(group_norm(channels, groups).num_groups, channels, eps=EPSILON, affine=False)
        self.scale = nn.Linear(inputs, channels)
        self.shift = nn.Linear(inputs, channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        std = (z.var(dim=(2, 3)) + EPSILON).sqrt()
        return self.norm(h) * self.scale(std)[:, :, None, None] + self.shift(z.mean(dim=(2, 3)))[:, :, None, None]


class DepthToSpace(nn.Module):
    """Maps [B, C, h, w] to [B, C, 2h, 2w]: four outputs a position of a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(hidden_states), 2)


class AdaptiveDecoder(Decoder):
    """Maps [B, inputs, h, w] to images [B, channels, s h, s w], without attention.

    `adaptive`: an `AdaptiveNorm` by the decoded map before the blocks of every level. `depth_to_space`: in place of
    nearest neighbours and a convolution.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        blocks: int,
        groups: int,
        channels: int,
        adaptive: bool = True,
        depth_to_space: bool = True,
    ):
        super().__init__(inputs, widths, blocks, (), False, groups, channels=channels)
        if depth_to_space:
            for level in self.up_blocks[:-1]:
                level.upsamplers[0] = DepthToSpace(level.resnets[-1].conv2.out_channels)
        entries = [level.resnets[0].conv1.in_channels for level in self.up_blocks] if adaptive else []
        self.norms = nn.ModuleList(AdaptiveNorm(inputs, width, groups) for width in entries)

    def forward(self, hidden_states: Tensor) -> Tensor:
        h = self.run(self.mid_block, self.conv_in(hidden_states))
        for i, level in enumerate(self.up_blocks):
            h = self.run(level, self.norms[i](h, hidden_states) if len(self.norms) else h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))
