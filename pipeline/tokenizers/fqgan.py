"""The convolutional autoencoder whose quantisers read branches of their own, of a trunk that they share."""

from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, cat, nn

from pipeline import components
from pipeline.code import Condition, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.nn.adapter_branch import AdapterBranch
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.convolution import Decoder, EncoderTrunk, match_memory_format
from pipeline.nn.transformer_sizes import check_heads
from pipeline.ranges import Count, Counts, ImageSize, Whole
from pipeline.tokenizers.base import MapTokenizer
from pipeline.validation import SettingError


class FQGAN(MapTokenizer):
    """Bai et al., arXiv:2411.16681: LlamaGen's convolutions, and for each of the codebooks a transformer adapter.

    The trunk is that of `conv_autoencoder` with `width`, `multipliers`, `blocks` and `attention`. Each of `branches`
    has `adapter_depth` blocks of `adapter_heads` over the places of the map, at the trunk's last width, and a
    convolution to `z_channels`. The bottleneck reads what the branches make in a row, so its codebooks are theirs where
    it is `factorised` (or a `product`) of as many; a generator's ids of a token are in that order. Adapters have one
    learned position a place, so images have one size.

    What a branch's codes are to say of the image is a loss, `branch_contrast`.
    """

    run_arguments = ()
    _supports_gradient_checkpointing = True
    _no_split_modules = ["PreNormBlock"]
    _repeated_blocks = ["DownLevel", "UpLevel", "Middle", "PreNormBlock"]
    _skip_layerwise_casting_patterns = ["norm", "positions"]

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        bottleneck: Node,
        branches: Count = 2,
        adapter_depth: Count = 6,
        adapter_heads: Count = 8,
        width: Count = 128,
        multipliers: Counts = [1, 1, 2, 2, 4],  # noqa: B006  never changed; saved as JSON
        decoder_multipliers: Counts | None = None,
        blocks: Whole = 2,
        attention: list[Whole] = [],  # noqa: B006
        groups: Count = 32,
        z_channels: Count = 256,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        self.spec = self.geometry(Arguments.from_config(self))
        widths = [[width * m for m in each] for each in (multipliers, decoder_multipliers or multipliers)]
        self.encoder = EncoderTrunk(widths[0], blocks, attention, True, groups, channels=image_channels)
        places = self.map_grid[0] * self.map_grid[1]
        sizes = (places, widths[0][-1], adapter_depth, adapter_heads, groups, z_channels, neck.inputs // branches)
        self.adapters = nn.ModuleList(AdapterBranch(*sizes) for _ in range(branches))
        self.neck = neck
        self.post_quant_conv = nn.Conv2d(neck.dim, z_channels, 1)
        self.decoder = Decoder(z_channels, widths[1], blocks, attention, True, groups, channels=image_channels)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        spec, levels = cls.spec_of_levels(arguments, 1), len(arguments.multipliers)
        if outside := [level for level in arguments.attention if not 0 <= level < levels]:
            raise SettingError("attention", f" names level {outside[0]}; the levels are 0 to {levels - 1}")
        if len(arguments.decoder_multipliers or arguments.multipliers) != levels:
            raise SettingError("decoder_multipliers", f" must have {levels} levels, as multipliers has")
        check_heads("fqgan", arguments.width * arguments.multipliers[-1], arguments.adapter_heads)
        inputs = components.build("bottlenecks", arguments.bottleneck).inputs
        if inputs % arguments.branches:
            raise SettingError("branches", f" is {arguments.branches}, which does not divide {inputs} channels of code")
        return spec

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities()

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_images(images)
        return super().features(images, condition)

    def encode_map(self, images: Tensor) -> Tensor:
        maps = self.encoder(images)
        return cat([branch(maps) for branch in self.adapters], dim=1)

    def decode_map(self, maps: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(match_memory_format(maps, self.decoder.conv_in.weight)))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        return {
            "encoder": [self.encoder, self.adapters, self.neck],
            "decoder": [self.post_quant_conv, self.decoder],
        }
