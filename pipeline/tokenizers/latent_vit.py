"""The tokenizer of two DINOv2 transformers: latent tokens read the image, mask tokens are decoded to it."""

import math
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.draws import Draws, PartDraws
from pipeline.nn import lora
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.class_projection import ProjectsClassFeatures
from pipeline.nn.dinov2 import Dinov2
from pipeline.nn.dinov2_autoencoder import Dinov2Decoder, Dinov2Encoder
from pipeline.nn.image_size import Sides, divide
from pipeline.nn.transformer_sizes import both_sizes, check_heads
from pipeline.nn.vision_transformer import image_tokens
from pipeline.ranges import Count, FractionBelowOne, ImageSize, Positive
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput, TrainingInputs
from pipeline.validation import at
from pipeline.vision import dinov2_weights
from pipeline.vision.named_model import NamedModel

Tuning = Literal["full", "lora", "frozen"]


class LatentViT(ProjectsClassFeatures, Tokenizer):
    """Qiu et al., arXiv:2503.08354 and 2509.12474: RobusTok's encoder and decoder, without its losses.

    Both are DINOv2's transformer, of `width`, `depth` and `heads`, the decoder's the same unless given.
    With `tokens` the code is a row of so many; without, it has one token per patch, on the grid of the patches, with
    their positions.

    `encoder_start` and `decoder_start` are folders or hub ids of DINOv2 weights in transformers' format
    (facebook/dinov2-base: width 768, depth 12, heads 12), resampled to these patches and their number. They are read
    once, when a new tokenizer is built; without, the transformer is initialised at random.

    With the tuning `full` all of such a transformer is trained. With `frozen` none of it is, which needs a start;
    latent and mask tokens, their positions, and the linear layers to code and pixels are trained with any tuning.
    `lora` adds to a frozen one its last norm and low-rank matrices, of `lora_rank` and scaled by `lora_alpha` /
    `lora_rank`, beside the linear layers that `lora_layers` names. `drop_path` is the probability that an image skips a
    branch of the last block in training; it rises linearly from 0 at the first.

    Pixels are [-1, 1] inside as outside, and nothing is clamped.
    """

    run_arguments = ()
    _supports_gradient_checkpointing = True
    _no_split_modules = ["ScaledBlock"]
    _repeated_blocks = ["ScaledBlock"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        bottleneck: Node,
        width: Count,
        depth: Count,
        heads: Count,
        patch_size: Count = 16,
        tokens: Count | None = None,
        decoder_width: Count | None = None,
        decoder_depth: Count | None = None,
        decoder_heads: Count | None = None,
        encoder_start: str | None = None,
        decoder_start: str | None = None,
        encoder_tuning: Tuning = "full",
        decoder_tuning: Tuning = "full",
        lora_rank: Count = 8,
        lora_alpha: Positive = 8.0,
        lora_layers: lora.Adapted = "feed_forward",
        drop_path: FractionBelowOne = 0.0,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        self.spec = self.geometry(Arguments.from_config(self))
        grid = patch_grid(Arguments.from_config(self))
        patches = grid[0] * grid[1]
        _, sizes = both_sizes(Arguments.from_config(self))
        encoder = Dinov2(patches, width, depth, heads, patch_size, drop_path, image_channels)
        decoder = Dinov2(patches, *sizes, drop_path=drop_path)
        self.encoder = Dinov2Encoder(encoder, tokens, neck.inputs)
        self.neck = neck
        self.decoder = Dinov2Decoder(decoder, tokens, neck.dim, patch_size, grid, image_channels)
        if torch.empty(0).device.type != "meta":
            for vit, name in ((encoder, "encoder_start"), (decoder, "decoder_start")):
                if self.config[name] is not None:
                    dinov2_weights.start_from(vit, self.config[name], name)
            self.register_to_config(encoder_start=None, decoder_start=None)  # a saved folder is whole without them
        for vit, tuning in self.tunings():
            if tuning == "lora":
                lora.adapt(vit, vit.adapted_layers(lora_layers), lora_rank, lora_alpha)
        for parameter in self.frozen_parameters():
            parameter.requires_grad_(False)

    @classmethod
    def named_models(cls, arguments: Arguments) -> dict[str, NamedModel]:
        given = {name: arguments[name] for name in ("encoder_start", "decoder_start")}
        return {name: NamedModel(start, hub=True) for name, start in given.items() if start is not None}

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        patches = patch_grid(arguments)
        for name, (width, depth, heads) in zip(("encoder_start", "decoder_start"), both_sizes(arguments)):
            check_heads("latent_vit", width, heads)
            if arguments[name] is not None:
                sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
                dinov2_weights.check_config(arguments[name], sizes, name)
        neck = components.build("bottlenecks", arguments.bottleneck)
        grid = patches if arguments.tokens is None else (arguments.tokens,)
        return neck.spec(grid)

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(prefixes=True, projection_width=arguments.width)

    def projection(self, features: Tensor) -> Tensor:
        return self.encoder.projection(features)

    def features(self, images: Tensor, condition: Condition | None = None, draws: Draws | None = None) -> Tensor:
        """As in the base; with draws, branches of the transformer are left out."""
        self.check_images(images)
        return self.encoder(images, None if draws is None else PartDraws(draws, "encoder"))

    def render(self, z: Tensor, condition: Condition | None = None, draws: Draws | None = None) -> Tensor:
        """As in the base; with draws, branches of the transformer are left out."""
        self.check_prefix(z)
        return self.decoder(z, None if draws is None else PartDraws(draws, "decoder"))

    def reconstruct(self, images: Tensor, given: TrainingInputs) -> TokenizerOutput:
        paths = given.draws if self.training else None
        code, z, terms = self.apply_bottleneck(self.features(images, given.condition, paths), given)
        return TokenizerOutput(self.render(z, given.condition, paths), code, terms)

    def decode_for_training(self, code: Code, given: TrainingInputs) -> Tensor:
        z = self.decoder_input(code)
        return self.render(z, given.condition, given.draws)

    def position_tokens(self, name: str, output: Tensor) -> Tensor:
        if output.ndim != 3:
            return super().position_tokens(name, output)
        return image_tokens(output, math.prod(patch_grid(Arguments.from_config(self))))

    def tunings(self) -> list[tuple[Dinov2, Tuning]]:
        """Both transformers, and how much of each is trained."""
        return [(self.encoder.vit, self.config.encoder_tuning), (self.decoder.vit, self.config.decoder_tuning)]

    def frozen_parameters(self) -> list[nn.Parameter]:
        """The weights that are frozen, or replaced by a low-rank change."""
        frozen = []
        for vit, tuning in self.tunings():
            moving = [*lora.adapters(vit), *vit.norm.parameters()] if tuning == "lora" else []
            moves = {id(parameter) for parameter in (vit.parameters() if tuning == "full" else moving)}
            frozen += [parameter for parameter in vit.parameters() if id(parameter) not in moves]
        return frozen

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.pixels.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"encoder": [self.encoder, self.neck], "decoder": [self.decoder]}


def patch_grid(arguments: Arguments) -> Sides:
    """Rows and columns of the patches; ValueError where a patch does not divide the sides of the images."""
    with at("latent_vit"):
        return divide(arguments.image_size, arguments.patch_size, f"patch_size {arguments.patch_size}")
