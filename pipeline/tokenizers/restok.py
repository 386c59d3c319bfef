"""The 1-D tokenizer of residual levels: every block of tokens holds what the coarser ones leave over."""

from dataclasses import replace
from itertools import accumulate

from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Condition, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.image_size import Sides, divide
from pipeline.nn.maskgit_convolution import Decoder, Encoder
from pipeline.nn.residual_levels import LevelDecoder, LevelEncoder, block_grid, doubling_blocks
from pipeline.nn.transformer_sizes import both_sizes, check_heads
from pipeline.ranges import Count, Counts, ImageSize
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput, TrainingInputs
from pipeline.validation import SettingError, at
from pipeline.vision.backbone import IMAGENET


class ResTok(Tokenizer):
    """ResTok (arXiv:2601.03955): tokens in blocks of 1, 1, 2, 4, ..., of a map that has levels itself.

    Convolutions without attention make a map of `z_channels`; a transformer of `width`, `depth` and `heads` reads it,
    with `image_levels` levels of the map and `token_levels` blocks of tokens (see `pipeline.nn.residual_levels`), and
    one of the decoder's sizes, the same unless given, makes such a map of the tokens, which convolutions turn into
    pixels. The layers between tokens and code are each block's own; the codebook is one.

    Any first few tokens decode, once it is trained with the perturbation `prefix_drop`. Tokens that this sets to zero
    (action: mask), and those that a prefix lacks, are a learned vector of the code's width. The code's levels are those
    of HAR, the network `parallel_level_transformer`: the first `single` tokens one by one, then the other blocks.

    With `interleaved`, as released, the last layers of the encoder read a part of the channels of all tokens, so that
    ids of coarse blocks depend on fine ones. With `feature_pass` the decoder runs a second time in training, for a loss
    `at: decoder.feature_map`; the mean of the coarsest level of the map is `at: encoder.summary`. The published losses
    there are `feature_margin` and `class_margin`.

    The convolutions read images of three channels less ImageNet's mean of colours over its std, others in [-1, 1]. They
    make pixels in [0, 1], which outside are in [-1, 1]; nothing is clamped.
    """

    run_arguments = ()
    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResidualLevelBlock"]
    _repeated_blocks = ["ResidualLevelBlock", "Level"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        bottleneck: Node,
        width: Count,
        depth: Count,
        heads: Count,
        decoder_width: Count | None = None,
        decoder_depth: Count | None = None,
        decoder_heads: Count | None = None,
        token_levels: Count = 8,
        image_levels: Count = 4,
        single: Count = 4,
        conv_width: Count = 128,
        multipliers: Counts = [1, 1, 2, 2, 4],  # noqa: B006  never changed; saved as JSON
        blocks: Count = 2,
        groups: Count = 32,
        z_channels: Count = 256,
        interleaved: bool = False,
        feature_pass: bool = False,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        arguments = Arguments.from_config(self)
        self.spec, grid = self.geometry(arguments), map_grid(arguments)
        sizes, made = both_sizes(arguments)
        widths, rows = [conv_width * multiplier for multiplier in multipliers], doubling_blocks(token_levels)
        self.pixel_encoder = Encoder(z_channels, widths, blocks, groups, image_channels)
        self.encoder = LevelEncoder(z_channels, grid, rows, image_levels, *sizes, neck.inputs, interleaved)
        self.neck = neck
        self.decoder = LevelDecoder(neck.dim, grid, rows, *made, z_channels, feature_pass)
        self.pixel_decoder = Decoder(z_channels, widths, blocks, groups, image_channels)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        for width, _, heads in both_sizes(arguments):
            check_heads("restok", width, heads)
            if width // heads % 4:
                raise SettingError(
                    "heads",
                    f" is {heads} of width {width}; rotary positions on two axes need 4, 8, ... channels a head",
                )
        check_levels(arguments)
        levels = code_levels(arguments.token_levels, arguments.single)
        spec = components.build("bottlenecks", arguments.bottleneck).spec((sum(levels),))
        return replace(spec, levels=tuple(levels))

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(prefixes=True)

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_images(images)
        return self.encoder(self.pixel_encoder(standardise(images)))

    def render(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_prefix(z)
        return self.paint(self.decoder(z))

    def paint(self, maps: Tensor) -> Tensor:
        """Maps [B, z_channels, h, w] to images in [-1, 1]."""
        return self.pixel_decoder(maps) * 2 - 1

    def reconstruct(self, images: Tensor, given: TrainingInputs) -> TokenizerOutput:
        code, z, terms = self.encode_for_training(images, given)
        self.check_prefix(z)
        own = code.z[:, : z.shape[1]]
        dropped = (z == 0).all(dim=-1) & (own != 0).any(dim=-1)  # by the perturbation; not a code of zeros
        images = self.paint(self.decoder(z, dropped))
        if self.config.feature_pass:
            self.decoder.pass_features(z, dropped)
        return TokenizerOutput(images, code, terms)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.pixel_decoder.conv_out.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        encoder = [self.pixel_encoder, self.encoder, self.neck]
        return {"encoder": encoder, "decoder": [self.decoder, self.pixel_decoder]}


def standardise(images: Tensor) -> Tensor:
    """Images [B, C, H, W] in [-1, 1] as the convolutions read them."""
    if images.shape[1] != 3:
        return images
    mean, std = (images.new_tensor(values)[:, None, None] for values in IMAGENET)
    return ((images + 1) / 2 - mean) / std


def code_levels(token_levels: int, single: int) -> list[int]:
    """Tokens of the levels of a code whose first `single` tokens are made one by one; ValueError where they cannot."""
    blocks = doubling_blocks(token_levels)
    if single not in (sums := list(accumulate(blocks))):
        raise SettingError("single", f" is {single}; give one of {', '.join(map(str, sums))}, where a block ends")
    return [1] * single + blocks[sums.index(single) + 1 :]


def map_grid(arguments: Arguments) -> Sides:
    """Rows and columns of the map between convolutions and transformers."""
    levels = len(arguments.multipliers)
    with at("restok"):
        return divide(arguments.image_size, 2 ** (levels - 1), f"{2 ** (levels - 1)}, the stride of {levels} levels")


def check_levels(arguments: Arguments) -> None:
    """ValueError where the levels do not fit the map, or the layers."""
    (rows, columns), levels = map_grid(arguments), arguments.image_levels
    if columns % 2 ** (levels - 1):
        raise SettingError(
            "image_levels", f" is {levels}, and {columns} columns do not halve {levels - 1} times; give fewer"
        )
    if levels > arguments.depth:
        raise SettingError("image_levels", f" is {levels}, more than the depth of {arguments.depth}; give fewer")
    finest = block_grid(doubling_blocks(arguments.token_levels)[-1])
    if finest[0] > rows or finest[1] > columns:
        raise SettingError(
            "token_levels",
            f" is {arguments.token_levels}, the last of {finest[0]}x{finest[1]} parts of a map of {rows}x{columns};"
            " give fewer",
        )
