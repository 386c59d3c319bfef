"""The tokenizer with a semantic and a pixel half, each with an encoder, a codebook and a decoder of its own."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Condition, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.convolution import Decoder, Encoder, match_memory_format
from pipeline.nn.image_size import divide, sides_of
from pipeline.nn.semantic_decoder import SemanticDecoder, tanh_layers
from pipeline.nn.transformer_sizes import check_heads
from pipeline.nn.vision_transformer import initialise
from pipeline.ranges import Count, Counts, ImageSize, Whole
from pipeline.tokenizers.base import MapTokenizer, TokenizerOutput, TrainingInputs
from pipeline.validation import SettingError
from pipeline.vision.encoder_choice import choose_encoder, tapped_map
from pipeline.vision.frozen_encoder import ENCODERS, OnFrozenEncoder, needs_stand_in


class TokenFlow(OnFrozenEncoder, MapTokenizer):
    """Qu et al., arXiv:2412.03069: one id a position for what a vision model sees there and for its pixels.

    `semantic_encoder` begins as a vision model and is trained with the rest. Its map, through two layers, is the
    semantic half of what the bottleneck reads, and that of a convolutional encoder the pixel half. The bottleneck is
    `shared_index`, or has it in its scales (`scale_by_scale`, as published). Of the semantic half of a code a
    transformer of `semantic_depth` blocks makes the features of a frozen teacher, `semantic_outputs` channels at each
    position, for the loss `semantic_reconstruction`; of the pixel half a convolutional decoder makes the image.

    `width * multipliers[i]` are the channels of the convolutions at level i, and the rest is as in
    `conv_autoencoder`; the pixel decoder may have its own width and blocks. They read, and make, images at
    `pixel_size` where that is stated (432 for SigLIP's 27 positions a side of images of 384), resampled bicubically.
    train=pixel_decoder trains the decoder of pixels alone.
    """

    entry_points = ("rebuild_semantic",)
    run_arguments = ()
    _supports_gradient_checkpointing = True
    _no_split_modules = ["PreNormBlock"]
    _repeated_blocks = ["PreNormBlock", "DownLevel", "UpLevel", "Middle"]
    _skip_layerwise_casting_patterns = ["norm", "positions", "stem", "embeddings"]

    encoder_argument = "semantic_encoder"
    choices = {"semantic_encoder": ENCODERS}

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        semantic_encoder: Node,
        bottleneck: Node,
        semantic_outputs: Count,
        semantic_width: Count = 768,
        semantic_depth: Count = 3,
        semantic_heads: Count = 12,
        width: Count = 128,
        multipliers: Counts = [1, 1, 2, 2, 4],  # noqa: B006  never changed; saved as JSON
        decoder_multipliers: Counts | None = None,
        blocks: Whole = 2,
        decoder_width: Count | None = None,
        decoder_blocks: Whole | None = None,
        attention: list[Whole] = [4],  # noqa: B006
        groups: Count = 32,
        z_channels: Count = 256,
        patch_size: Count = 1,
        pixel_size: ImageSize | None = None,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        arguments = Arguments.from_config(self)
        self.spec = self.geometry(arguments)
        channels, grid = tapped_map(semantic_encoder, image_size, "semantic_encoder")
        semantic_dim, pixel_dim = neck.split
        widths = [width * m for m in multipliers]
        decoder_widths = [(decoder_width or width) * m for m in decoder_multipliers or multipliers]
        trunk = {"attention_levels": attention, "middle_attention": True, "groups": groups, "patch": patch_size}
        trunk |= {"channels": image_channels}
        encoder, encoder_arguments = choose_encoder(semantic_encoder, image_size, "semantic_encoder")
        self.encoder = encoder(**encoder_arguments)
        self.to_semantic = tanh_layers(channels, channels, semantic_dim)
        self.convolution = Encoder(z_channels, widths, blocks, **trunk)
        self.quant_conv = nn.Conv2d(z_channels, pixel_dim, 1)
        self.neck = neck
        semantic = (semantic_width, semantic_depth, semantic_heads, semantic_outputs)
        self.semantic_decoder = SemanticDecoder(semantic_dim, math.prod(grid), *semantic)
        self.post_quant_conv = nn.Conv2d(pixel_dim, z_channels, 1)
        blocks = blocks if decoder_blocks is None else decoder_blocks
        self.decoder = Decoder(z_channels, decoder_widths, blocks, **trunk)
        initialise(self.to_semantic)
        self.keep_source()
        self.release_encoder()

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        check_heads("tokenflow", arguments.semantic_width, arguments.semantic_heads)
        _, grid = tapped_map(arguments.semantic_encoder, arguments.image_size, "semantic_encoder")
        pixels = pixel_grid(arguments)
        if pixels != tuple(grid):
            raise ValueError(
                f"tokenflow: the convolutions make {pixels[0]}x{pixels[1]} positions of an image, the semantic encoder"
                f" {grid[0]}x{grid[1]}; state pixel_size, or another number of multipliers"
            )
        neck = components.build("bottlenecks", arguments.bottleneck)
        if len(neck.split) != 2 or neck.inputs != neck.dim:
            raise ValueError(
                "tokenflow: codes have a semantic and a pixel half; set tokenizer.model.bottleneck.kind=shared_index,"
                " or scale_by_scale of it"
            )
        return neck.spec(grid)

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(
            parts=("all", "encoder", "decoder", "pixel_decoder"),
            features=("rebuilt_semantic",),
            semantic_width=arguments.semantic_outputs,
            needs_stand_in=needs_stand_in(arguments.semantic_encoder),
        )

    def release_encoder(self) -> None:
        """Let the vision model be trained, which as a frozen one is not."""
        self.encoder.requires_grad_(True)
        for parameter in self.frozen_parameters():
            parameter.requires_grad_(False)

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the vision model that nothing here reads."""
        return self.encoder.unread_parameters()

    def grid(self, images: Tensor) -> tuple[int, int]:
        """As in the base; images have one size, for positions are learned."""
        self.check_images(images)
        return self.map_grid

    def encode_map(self, images: Tensor) -> Tensor:
        seen = self.encoder.normed_maps(images)[-1]  # [B, C, h, w]
        semantic = self.to_semantic(seen.movedim(1, -1)).movedim(-1, 1)
        return torch.cat([semantic, self.quant_conv(self.convolution(self.resized(images)))], dim=1)

    def resized(self, images: Tensor) -> Tensor:
        """Images as the convolutions read them."""
        sides = sides_of(self.config.pixel_size or self.config.image_size)
        return images if images.shape[2:] == sides else F.interpolate(images, sides, mode="bicubic")

    def decode_map(self, maps: Tensor) -> Tensor:
        pixels = match_memory_format(maps[:, self.neck.split[0] :], self.decoder.conv_in.weight)
        images, sides = self.decoder(self.post_quant_conv(pixels)), self.image_shape[1:]
        return images if images.shape[2:] == sides else F.interpolate(images, sides, mode="bicubic")

    def rebuild_semantic(self, z: Tensor) -> Tensor:
        """z [B, h * w, C] as the decoders read it to the teacher's features, [B, semantic_outputs, h, w]."""
        return self.semantic_decoder(z[..., : self.neck.split[0]]).mT.unflatten(2, self.map_grid)

    def reconstruct(self, images: Tensor, given: TrainingInputs) -> TokenizerOutput:
        code, z, terms = self.encode_for_training(images, given)
        features = {"rebuilt_semantic": self.rebuild_semantic(z)}
        return TokenizerOutput(self.decode_map(self.decoder_map(images, z)), code, terms, features)

    def render(self, z: Tensor, condition: Condition | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """As in the base, of its own grid alone."""
        if grid not in (None, self.map_grid):
            raise ValueError(f"a tokenflow makes images of {self.map_grid} positions alone; leave grid out")
        return super().render(z, condition)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        pixels = [self.post_quant_conv, self.decoder]
        return {
            "encoder": [self.encoder, self.to_semantic, self.convolution, self.quant_conv, self.neck],
            "decoder": [self.semantic_decoder, *pixels],
            "pixel_decoder": pixels,
        }


def pixel_grid(arguments: Arguments) -> tuple[int, ...]:
    """Positions that the convolutions make of an image; ValueError where sizes do not fit together."""
    levels = len(arguments.multipliers)
    if len(arguments.decoder_multipliers or arguments.multipliers) != levels:
        raise SettingError("decoder_multipliers", f" must have {levels} levels, as multipliers has")
    if outside := [level for level in arguments.attention if level >= levels]:
        raise SettingError("attention", f" names level {outside[0]}; the levels are 0 to {levels - 1}")
    stride = arguments.patch_size * 2 ** (levels - 1)
    sides = sides_of(arguments.pixel_size or arguments.image_size)
    return tuple(divide(sides, stride, f"{stride}, the stride of {levels} levels"))
