"""The 1-D tokenizer of convolutions and query transformers: a row of tokens that reads, and makes, a map."""

import math
from typing import Literal

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.nn.adaptive_convolution import AdaptiveDecoder
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.convolution import Encoder
from pipeline.nn.image_size import Sides, divide
from pipeline.nn.query_transformer import Pooling, QueryDecoder, QueryEncoder, initialise, part_grids
from pipeline.nn.transformer_sizes import both_sizes, check_heads
from pipeline.ranges import Count, Counts, ImageSize, Positive, Whole
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput, TrainingInputs
from pipeline.validation import SettingError, at


class GigaTok(Tokenizer):
    """Xiong et al., arXiv:2504.08736: convolutions to a map, `tokens` queries that read it, and the same way back.

    Encoder and decoder are query transformers of `width`, `depth` and `heads`, the decoder's the same unless given, on
    a map of `z_channels` that convolutions without attention make of `conv_width` times `multipliers` channels, and
    turn into pixels. Queries of the encoder begin as means over parts of the map (`pooling`), those of the decoder as
    the first token. Any first few tokens decode, once it is trained with the perturbation `prefix_drop`.

    `redundant` is ReToK's padding (Fu et al., arXiv:2601.01535): where a training perturbs codes, so many of the last
    tokens follow a second time, as tokens with positions of their own, so that `prefix_drop` keeps the last tokens of
    the code more often. The code is the first `tokens`.

    With `direct`, terms of a shorter way that the released models began with: `direct_pixel`, the squared error of the
    pixels made from the encoder's own map, and `direct_map`, that of the decoder's map from it.

    Weights begin with a standard deviation of `weight_std`. The published one is for widths of 512 and more; of narrow
    networks, codes then begin so near to each other that none tells images apart.

    A phase with train=pixel_decoder trains the last convolutions alone. The semantic term is the loss `feature_cosine`
    with `at: decoder.blocks.2`.
    """

    run_arguments = ()
    _supports_gradient_checkpointing = True
    _no_split_modules = ["QueryBlock"]
    _repeated_blocks = ["QueryBlock"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        bottleneck: Node,
        tokens: Count,
        width: Count,
        depth: Count,
        heads: Count,
        decoder_width: Count | None = None,
        decoder_depth: Count | None = None,
        decoder_heads: Count | None = None,
        conv_width: Count = 128,
        multipliers: Counts = [1, 1, 2, 2, 4],  # noqa: B006  never changed; saved as JSON
        decoder_multipliers: Counts | None = None,
        blocks: Count = 2,
        groups: Count = 32,
        z_channels: Count = 256,
        pooling: Pooling = "levels",
        adaptive: bool = True,
        upsampling: Literal["depth_to_space", "nearest"] = "depth_to_space",
        redundant: Whole = 0,
        direct: bool = False,
        weight_std: Positive = 0.02,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        arguments = Arguments.from_config(self)
        self.spec, grid = self.geometry(arguments), map_grid(arguments)
        sizes, made = both_sizes(arguments)
        widths = [[conv_width * m for m in each] for each in (multipliers, decoder_multipliers or multipliers)]
        self.map_encoder = Encoder(z_channels, widths[0], blocks, (), False, groups, channels=image_channels)
        self.encoder = QueryEncoder(z_channels, math.prod(grid), tokens, redundant, pooling, *sizes)
        self.decoder = QueryDecoder(z_channels, grid, tokens + redundant, *made)
        self.pixel_decoder = AdaptiveDecoder(
            *(z_channels, widths[1], blocks, groups, image_channels, adaptive, upsampling == "depth_to_space")
        )
        for part in (self.map_encoder, self.encoder, self.decoder, self.pixel_decoder):
            initialise(part, weight_std)
        self.quant_conv = nn.Linear(z_channels, neck.inputs)
        self.neck = neck
        self.post_quant_conv = nn.Linear(neck.dim, z_channels)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        for width, _, heads in both_sizes(arguments):
            check_heads("gigatok", width, heads)
        grid, tokens, made = map_grid(arguments), arguments.tokens, arguments.decoder_multipliers
        if made is not None and len(made) != len(arguments.multipliers):
            count = len(arguments.multipliers)
            raise SettingError("decoder_multipliers", f" has {len(made)} levels; give {count}, as multipliers has")
        rows, columns = part_grids(tokens)[-1]
        if arguments.pooling == "levels" and (rows > grid[0] or columns > grid[1]):
            raise SettingError(
                "tokens", f" is {tokens}, of {rows}x{columns} parts of a map of {grid[0]}x{grid[1]}; set fewer, or"
                " give multipliers fewer entries"
            )  # fmt: skip
        if arguments.redundant > tokens:
            raise SettingError("redundant", f" is {arguments.redundant}; give at most {tokens}, the tokens there are")
        return components.build("bottlenecks", arguments.bottleneck).spec((tokens,))

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return (*super().terms(arguments), *(("direct_pixel", "direct_map") if arguments.direct else ()))

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(parts=("all", "encoder", "decoder", "pixel_decoder"), prefixes=True)

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_images(images)
        return self.read(self.map_encoder(images), self.config.tokens)

    def read(self, maps: Tensor, tokens: int) -> Tensor:
        """Maps [B, z_channels, h, w] to the first few tokens, copies counted, as the bottleneck reads them."""
        return self.quant_conv(self.encoder(maps)[:, :tokens])

    def render(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        return self.pixel_decoder(self.decoded_map(z))

    def decoded_map(self, z: Tensor) -> Tensor:
        """The first few tokens z [B, n, C] at the bottleneck's own scale to the map [B, z_channels, h, w]."""
        self.check_prefix(z)
        return self.decoder(self.post_quant_conv(z))

    def check_prefix(self, z: Tensor) -> None:
        """As in the base; the copies of tokens count."""
        if z.shape[1] == 0 or z.shape[1] > self.config.tokens + self.config.redundant:
            super().check_prefix(z)

    def reconstruct(self, images: Tensor, given: TrainingInputs) -> TokenizerOutput:
        self.check_images(images)
        tokens, maps = self.config.tokens, self.map_encoder(images)
        copies = 0 if given.perturb is None else self.config.redundant
        code, z, terms = self.apply_bottleneck(self.read(maps, tokens + copies), given)
        decoded = self.decoded_map(z)
        if self.config.direct:
            terms = terms | self.direct_terms(images, maps, decoded)
        code = Code(z=code.z[:, :tokens], ids=None if code.ids is None else code.ids[:, :tokens])
        return TokenizerOutput(self.pixel_decoder(decoded), code, terms)

    def direct_terms(self, images: Tensor, maps: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        """The terms of the way without tokens, of the encoder's map and the decoder's."""
        return {
            "direct_pixel": F.mse_loss(self.pixel_decoder(maps).float(), images.float()),
            "direct_map": F.mse_loss(decoded.float(), maps.detach().float()),
        }

    @property
    def last_layer(self) -> nn.Parameter:
        return self.pixel_decoder.conv_out.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        return {
            "encoder": [self.map_encoder, self.encoder, self.quant_conv, self.neck],
            "decoder": [self.post_quant_conv, self.decoder, self.pixel_decoder],
            "pixel_decoder": [self.pixel_decoder],
        }


def map_grid(arguments: Arguments) -> Sides:
    """Rows and columns of the map between convolutions and transformers; ValueError where it is none, or one place."""
    levels = len(arguments.multipliers)
    stride = 2 ** (levels - 1)
    with at("gigatok"):
        grid = divide(arguments.image_size, stride, f"{stride}, the stride of {levels} levels; change one")
        if math.prod(grid) == 1:
            raise ValueError(f"{levels} levels leave a map of one place, which has no moments; give fewer multipliers")
    return grid
