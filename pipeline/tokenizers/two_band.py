"""The autoencoder of two bands of frequency: local means and detail, each by a network of its own."""

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import components
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.nn.branched import Branched
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.convolution import Decoder, Encoder, match_memory_format
from pipeline.nn.haar import haar, inverse_haar
from pipeline.nn.image_size import sides_of
from pipeline.nn.map_transform import UNCHANGED, MapTransform
from pipeline.ranges import Count, Counts, ImageSize, Whole
from pipeline.tokenizers.base import MapTokenizer, TokenizerOutput, TrainingInputs

BANDS = {"low": 1, "high": 3}  # of each channel of an image


class Branch(nn.Module):
    """One band's convolutional encoder and decoder, with a 1x1 convolution on either side of the bottleneck."""

    def __init__(self, channels: int, inputs: int, dim: int, z_channels: Count, *trunk: object):
        super().__init__()
        encoded = z_channels * (inputs // dim)
        self.encoder = Encoder(encoded, *trunk, channels)
        self.quant_conv = nn.Conv2d(encoded, inputs, 1)
        self.post_quant_conv = nn.Conv2d(dim, z_channels, 1)
        self.decoder = Decoder(z_channels, *trunk, channels)

    def encode(self, view: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(view))

    def decode(self, maps: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(match_memory_format(maps, self.decoder.conv_in.weight)))


class TwoBand(Branched, MapTokenizer):
    """Medi et al., arXiv:2509.05441 (FA-VAE): the bands of a one-level Haar transform, coefficients divided by 2.

    The branch `low` is given LL, brought back to the size of the image by bicubic interpolation, and makes such an
    image; `high` is given LH, HL and HH of all channels at half the size. Both end on the grid of the code, whose
    first channels are the low branch's and whose last `high_dim` (half of them when None) the high one's. Decoding
    brings the low image down again, takes it for LL, and inverts the transform.

    The networks are those of latent diffusion: `width * multipliers[i]` channels at level i, where `high_multipliers`
    has one level less (those of `multipliers` without the last when None), `blocks` residual blocks per level,
    attention at the levels `attention` of the low branch and at the same sizes of the other. `z_channels` is the entry
    width of both decoders where it differs from their channels of the code.

    A phase with train=low or train=high is a training of this branch alone: its losses and its critic compare its
    input with its output, and the code that they look at is 0 in the channels of the other, so that no gradient
    of one is ever at the other. The term of the bottleneck is a mean over both. All other phases compare images.
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
        multipliers: Counts = [1, 1, 2, 2, 4],  # noqa: B006  never changed; saved as JSON
        blocks: Whole = 2,
        attention: list[Whole] = [],  # noqa: B006
        middle_attention: bool = True,
        groups: Count = 32,
        z_channels: Count | None = None,
        patch_size: Count = 1,
        high_width: Count | None = None,
        high_multipliers: Counts | None = None,
        high_dim: Count | None = None,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        self.spec = self.geometry(Arguments.from_config(self))
        self.dims = split_dim(neck.dim, high_dim)
        levels = {"low": multipliers, "high": high_multipliers or multipliers[:-1]}
        widths, attends = (
            {"low": width, "high": high_width or width},
            {"low": attention, "high": [a - 1 for a in attention]},
        )
        branches = {}
        for band, count in BANDS.items():
            dim = self.dims[band]
            inputs = dim * (neck.inputs // neck.dim)
            trunk = (
                [widths[band] * m for m in levels[band]],
                blocks,
                attends[band],
                middle_attention,
                groups,
                patch_size,
            )
            branches[band] = Branch(count * image_channels, inputs, dim, z_channels or dim, *trunk)
        self.low, self.neck, self.high = branches["low"], neck, branches["high"]

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        spec, levels = cls.spec_of_levels(arguments, arguments.patch_size), len(arguments.multipliers)
        high_levels = levels - 1 if arguments.high_multipliers is None else len(arguments.high_multipliers)
        if levels < 2:
            raise ValueError(
                "two_band: multipliers needs two levels or more, for the high band begins at half the size"
            )
        if high_levels != levels - 1:
            raise ValueError(
                f"two_band: high_multipliers has {high_levels} levels; at half the size it needs one less"
                f" than multipliers, {levels - 1}, to end on the same grid"
            )
        if outside := [level for level in arguments.attention if not 0 <= level < levels]:
            raise ValueError(f"attention names level {outside[0]}; the levels are 0 to {levels - 1}")
        if spec.vocab:
            raise ValueError(
                f"two_band: {arguments.bottleneck['kind']} gives one id for both bands; take a continuous bottleneck,"
                " for example gaussian"
            )
        split_dim(spec.dim, arguments.high_dim)
        return spec

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        height, width = sides_of(arguments.image_size)
        sides = {"low": (height, width), "high": (height // 2, width // 2)}
        branches = {band: (count * arguments.image_channels, *sides[band]) for band, count in BANDS.items()}
        return Capabilities(parts=("all", "encoder", "decoder", *branches), branches=branches, transforms=True)

    def view(self, images: Tensor, branch: str) -> Tensor:
        """`low`: LL / 2 at the size of the images [B, C, H, W]; `high`: [B, 3 C, H/2, W/2], channel by channel."""
        bands = haar(images) / 2  # [B, 4, C, H/2, W/2]
        if branch == "low":
            return resize_bicubic(bands[:, 0], images.shape[2:])
        return bands[:, 1:].transpose(1, 2).flatten(1, 2)

    def merge_bands(self, low: Tensor, high: Tensor) -> Tensor:
        """The image of the views `low` [B, C, H, W] and `high` [B, 3 C, H/2, W/2], up to the interpolation of `low`."""
        detail = high.unflatten(1, (-1, 3)).transpose(1, 2)  # [B, 3 bands, C, H/2, W/2]
        return inverse_haar(2 * torch.cat([resize_bicubic(low, high.shape[2:])[:, None], detail], dim=1))

    def encode_map(self, images: Tensor) -> Tensor:
        return self.by_tile(self.encode_bands, images, self.tile, self.stride)

    def decode_map(self, maps: Tensor) -> Tensor:
        return self.by_tile(self.decode_bands, maps, self.map_grid)

    def encode_bands(self, images: Tensor) -> Tensor:
        """Images to what the bottleneck reads, both bands as maps [B, inputs, h, w]."""
        return self.join_branches({band: getattr(self, band).encode(self.view(images, band)) for band in BANDS})

    def join_branches(self, halves: dict[str, Tensor]) -> Tensor:
        """What the bottleneck reads of both branches [B, inputs, h, w]: mean beside mean, variance beside variance."""
        groups = self.neck.inputs // self.neck.dim
        parts = [halves[band].chunk(groups, dim=1) for band in BANDS]
        return torch.cat([part for pair in zip(*parts) for part in pair], dim=1)

    def decode_bands(self, maps: Tensor) -> Tensor:
        """z as maps [B, C, h, w] to images."""
        low, high = maps.split([self.dims[band] for band in BANDS], dim=1)
        return self.merge_bands(self.low.decode(low), self.high.decode(high))

    def reconstruct(
        self, images: Tensor, given: TrainingInputs, transform: MapTransform = UNCHANGED, branch: str | None = None
    ) -> TokenizerOutput:
        """With a `branch`, `images` are its view of the images, and so is what comes back."""
        if branch is None:
            return super().reconstruct(images, given, transform)
        net = getattr(self, branch)
        maps = net.encode(images)  # [B, inputs, h, w]
        other = maps.new_zeros(len(maps), self.neck.inputs - maps.shape[1], *maps.shape[2:])
        maps = self.join_branches({band: maps if band == branch else other for band in BANDS})
        code, z, terms = self.apply_bottleneck(maps.flatten(2).transpose(1, 2), given)
        decoder_input = self.split_branches(z)[branch].transpose(1, 2).unflatten(2, tuple(maps.shape[2:]))
        alone = [
            half if band == branch else torch.zeros_like(half) for band, half in self.split_branches(code.z).items()
        ]
        return TokenizerOutput(net.decode(decoder_input), Code(torch.cat(alone, dim=2)), terms)

    def split_branches(self, z: Tensor) -> dict[str, Tensor]:
        """z [B, N, C] by branch."""
        return dict(zip(BANDS, z.split([self.dims[band] for band in BANDS], dim=2)))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.branch_last_layer("low")

    def branch_last_layer(self, branch: str) -> nn.Parameter:
        return self.get_submodule(branch).decoder.conv_out.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        both = (self.low, self.high)
        return {
            "encoder": [*(part for net in both for part in (net.encoder, net.quant_conv)), self.neck],
            "decoder": [part for net in both for part in (net.post_quant_conv, net.decoder)],
            "low": [self.low],
            "high": [self.high],
        }


def split_dim(dim: int, high_dim: int | None) -> dict[str, int]:
    """Channels of a code of `dim` for each band; ValueError where one is left without."""
    high = dim // 2 if high_dim is None else high_dim
    if not 0 < high < dim:
        raise ValueError(f"two_band: of {dim} channels {high} are the high band's; each band needs one or more")
    return {"low": dim - high, "high": high}


def resize_bicubic(maps: Tensor, size: torch.Size) -> Tensor:
    """Bicubic, without antialiasing: so it undoes itself best when the size is halved again."""
    return F.interpolate(maps, tuple(size), mode="bicubic", align_corners=False)
