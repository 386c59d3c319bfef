"""The convolutional autoencoder of latent diffusion."""

from typing import Literal

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up here
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import LatentSpec
from pipeline.components import Arguments, Node
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.class_projection import ProjectsClassFeatures
from pipeline.nn.convolution import Decoder, Encoder, match_memory_format
from pipeline.nn.stock_model import StockModel
from pipeline.ranges import Count, Counts, ImageSize, Whole
from pipeline.tokenizers.base import MapTokenizer


class ConvAutoencoder(ProjectsClassFeatures, MapTokenizer):
    """Rombach et al., arXiv:2112.10752: residual blocks, a convolution on either side of the bottleneck.

    `width * multipliers[i]` channels at level i (0 is full resolution), `blocks` residual blocks per level in the
    encoder and one more in the decoder, attention at the levels listed in `attention` and in the middle. The stride is
    patch_size * 2 ** (levels - 1): with patch_size 2, a quarter of the pixels in four times the channels enter the
    first convolution, which saves the costliest level. `z_channels` is the decoder's entry width where it differs from
    the bottleneck's dim; `quant_kernel` is the size of the convolutions beside the bottleneck, 3 in VAR.

    Parameters are named as in diffusers' `AutoencoderKL`; `stock` makes one.
    """

    use_tiling = False
    _supports_gradient_checkpointing = True
    _repeated_blocks = ["DownLevel", "UpLevel", "Middle"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        bottleneck: Node,
        width: Count = 128,
        multipliers: Counts = [1, 2, 4, 4],  # noqa: B006  never changed; saved as JSON
        blocks: Whole = 2,
        attention: list[Whole] = [],  # noqa: B006
        middle_attention: bool = True,
        groups: Count = 32,
        decoder_width: Count | None = None,
        z_channels: Count | None = None,
        patch_size: Count = 1,
        quant_kernel: Literal[1, 3] = 1,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        self.spec = self.geometry(Arguments.from_config(self))
        inner = z_channels or neck.dim
        encoded = encoded_channels(neck, z_channels)
        widths = [[base * m for m in multipliers] for base in (width, decoder_width or width)]
        trunk = (blocks, attention, middle_attention, groups, patch_size, image_channels)
        self.encoder = Encoder(encoded, widths[0], *trunk)
        self.quant_conv = nn.Conv2d(encoded, neck.inputs, quant_kernel, padding=quant_kernel // 2)
        self.neck = neck
        self.post_quant_conv = nn.Conv2d(neck.dim, inner, quant_kernel, padding=quant_kernel // 2)
        self.decoder = Decoder(inner, widths[1], *trunk)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        spec, levels = cls.spec_of_levels(arguments, arguments.patch_size), len(arguments.multipliers)
        if outside := [level for level in arguments.attention if not 0 <= level < levels]:
            raise ValueError(f"attention names level {outside[0]}; the levels are 0 to {levels - 1}")
        return spec

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        neck = components.build("bottlenecks", arguments.bottleneck)
        return Capabilities(transforms=True, projection_width=encoded_channels(neck, arguments.z_channels))

    def projection(self, features: Tensor) -> Tensor:
        return self.quant_conv(features[:, :, None, None])[:, :, 0, 0]

    def encode_map(self, images: Tensor) -> Tensor:
        return self.by_tile(lambda x: self.quant_conv(self.encoder(x)), images, self.tile, self.stride)

    def decode_map(self, maps: Tensor) -> Tensor:
        maps = match_memory_format(maps, self.decoder.conv_in.weight)
        return self.by_tile(lambda x: self.decoder(self.post_quant_conv(x)), maps, self.map_grid, 1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        return {
            "encoder": [self.encoder, self.quant_conv, self.neck],
            "decoder": [self.post_quant_conv, self.decoder],
        }

    def check_stock(self) -> None:
        c, dim = self.config, self.neck.dim
        inner = self.post_quant_conv.out_channels
        same = inner == dim and (c.decoder_width or c.width) == c.width and c.patch_size == c.quant_kernel == 1
        if c.bottleneck["kind"] != "gaussian" or not same:
            raise ValueError(
                "AutoencoderKL has a Gaussian bottleneck, one width, 1x1 convolutions beside it, no z_channels and no"
                " patches; not this tokenizer"
            )
        widths = [c.width * m for m in c.multipliers]
        if any(width % c.groups for width in widths):
            raise ValueError(f"AutoencoderKL needs widths that {c.groups} groups divide; these are {widths}")

    @torch.no_grad()
    def stock(self) -> StockModel:
        """The same function as a stock `AutoencoderKL`, its latents at unit scale (scaling_factor 1).

        The stored mean and std go into the 1x1 convolutions: mean' = (mean - m) / s, logvar' = logvar - 2 log s, and
        z = s z' + m.
        """
        self.check_stock()
        c, dim = self.config, self.neck.dim
        widths = [c.width * m for m in c.multipliers]
        attends = [i in c.attention for i in range(len(widths))]
        stock = AutoencoderKL(
            down_block_types=tuple("AttnDownEncoderBlock2D" if at else "DownEncoderBlock2D" for at in attends),
            up_block_types=tuple("AttnUpDecoderBlock2D" if at else "UpDecoderBlock2D" for at in reversed(attends)),
            block_out_channels=tuple(widths),
            layers_per_block=c.blocks,
            latent_channels=dim,
            norm_num_groups=c.groups,
            in_channels=c.image_channels,
            out_channels=c.image_channels,
            sample_size=c.image_size,
            scaling_factor=1.0,
            mid_block_add_attention=c.middle_attention,
        )
        stock.load_state_dict(self._unit_scale_state())
        return StockModel(stock.eval(), "Its latents are at unit scale (scaling_factor 1).")

    def _unit_scale_state(self) -> dict[str, Tensor]:
        state = {name: value.cpu() for name, value in self.state_dict().items()}  # not every device has float64
        mean, std = state.pop("mean").double(), state.pop("std").double()
        scale = torch.cat([1 / std, torch.ones_like(std)])
        shift = torch.cat([-mean / std, -2 * std.log()])
        state["quant_conv.weight"] = state["quant_conv.weight"] * scale[:, None, None, None]
        state["quant_conv.bias"] = state["quant_conv.bias"] * scale + shift
        entry = state["post_quant_conv.weight"].double()
        state["post_quant_conv.weight"] = entry * std[:, None, None]
        state["post_quant_conv.bias"] = state["post_quant_conv.bias"] + entry[:, :, 0, 0] @ mean
        return state


def encoded_channels(neck: Bottleneck, z_channels: int | None) -> int:
    """The encoder ends in `z_channels`, or as many as the code has: twice, for a Gaussian's mean and log variance."""
    return (z_channels or neck.dim) * max(1, neck.inputs // neck.dim)
