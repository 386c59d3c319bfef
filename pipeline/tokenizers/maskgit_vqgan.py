"""The convolutional autoencoder of MaskGIT."""

from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import LatentSpec
from pipeline.components import Arguments, Node
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.class_projection import ProjectsClassFeatures
from pipeline.nn.convolution import match_memory_format
from pipeline.nn.maskgit_convolution import Decoder, Encoder
from pipeline.ranges import Count, Counts, ImageSize, Whole
from pipeline.tokenizers.base import MapTokenizer


class MaskgitVqgan(ProjectsClassFeatures, MapTokenizer):
    """Chang et al., arXiv:2202.04200, as released in PyTorch with TiTok (bytedance/1d-tokenizer).

    Without attention: `width * multipliers[i]` channels at level i (0 is full resolution), `blocks` residual blocks a
    level and in the middle, mean pooling on the way down and nearest neighbours on the way up, so that the stride is
    2 ** (levels - 1). The encoder ends in what the bottleneck reads and the decoder begins with what it gives. Inside,
    pixels are [0, 1], as the released weights expect; outside they are [-1, 1], and nothing is clamped.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["Level"]
    use_tiling = False
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        bottleneck: Node,
        width: Count = 128,
        multipliers: Counts = [1, 1, 2, 2, 4],  # noqa: B006  never changed; saved as JSON
        blocks: Whole = 2,
        groups: Count = 32,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        self.spec = self.geometry(Arguments.from_config(self))
        widths = [width * multiplier for multiplier in multipliers]
        self.encoder = Encoder(neck.inputs, widths, blocks, groups, image_channels)
        self.neck = neck
        self.decoder = Decoder(neck.dim, widths, blocks, groups, image_channels)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        return cls.spec_of_levels(arguments, patch_size=1)

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(transforms=True, projection_width=arguments.width * arguments.multipliers[-1])

    def projection(self, features: Tensor) -> Tensor:
        return self.encoder.conv_out(features[:, :, None, None])[:, :, 0, 0]

    def encode_map(self, images: Tensor) -> Tensor:
        return self.by_tile(self.encoder, (images + 1) / 2, self.tile, self.stride)

    def decode_map(self, maps: Tensor) -> Tensor:
        maps = match_memory_format(maps, self.decoder.conv_in.weight)
        return self.by_tile(self.decoder, maps, self.map_grid) * 2 - 1

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"encoder": [self.encoder, self.neck], "decoder": [self.decoder]}
