"""What the tokenizers share whose encoder and decoder are vision transformers with latent tokens beside the patches."""

import math
from typing import Any

from torch import Tensor, nn

from pipeline.code import Condition, LatentSpec
from pipeline.components import Arguments, build
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.caption_tokens import caption_features, check_captions
from pipeline.nn.class_projection import ProjectsClassFeatures
from pipeline.nn.conditions import spec_read
from pipeline.nn.image_size import Sides, divide
from pipeline.nn.transformer_sizes import both_sizes, check_heads
from pipeline.nn.vision_transformer import LatentDecoder, LatentEncoder, image_tokens
from pipeline.validation import at


class LatentTransformers(ProjectsClassFeatures):
    """`encoder`, the bottleneck `neck`, `decoder` and the head `output`, to be named before the base that it extends.

    Their sizes are the arguments `tokens`, `width`, `depth`, `heads` and `patch_size`, the decoder's the same unless
    `decoder_width` and so on are given. Halves that read captions have them in their sequences; the shape of their
    features is the arguments `text_tokens`, `text_dim` and `text_layers`.
    """

    reads_captions: tuple[str, ...] = ()  # of "encoder" and "decoder"
    class_token: bool = True
    offset, factor = 0.5, 0.5  # from pixels outside to those inside, here [0, 1]

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        for width, _, heads in both_sizes(arguments):
            check_heads(cls.__name__.lower(), width, heads)
        patch_grids(cls.__name__.lower(), arguments)
        if cls.reads_captions:
            check_captions(cls.__name__.lower(), arguments)
        neck = build("bottlenecks", arguments.bottleneck)
        return neck.spec((arguments.tokens,))

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(
            parts_without_pixels=("encoder",),
            prefixes=True,
            projection_width=arguments.width,
            captions=cls.reads_captions,
        )

    def add_transformers(self, arguments: Arguments, neck: nn.Module, **options: Any) -> None:
        """Build the halves on both sides of the bottleneck `neck`; `options` are the encoder's."""
        encoder, (width, depth, heads) = both_sizes(arguments)
        patches, made = (math.prod(grid) for grid in patch_grids(type(self).__name__.lower(), arguments))
        captions = {half: spec_read(arguments) for half in self.reads_captions}
        self.encoder = LatentEncoder(
            *(patches, arguments.patch_size, arguments.tokens, *encoder, neck.inputs),
            channels=arguments.image_channels,
            captions=captions.get("encoder"),
            class_token=self.class_token,
            **options,
        )
        self.neck = neck
        self.decoder = LatentDecoder(
            *(neck.dim, made, arguments.tokens, width, depth, heads), captions.get("decoder"), self.class_token
        )

    def projection(self, features: Tensor) -> Tensor:
        return self.encoder.projection(features)

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_images(images)
        return self.encoder(images * self.factor + self.offset, self.captions_for("encoder", condition))

    def render(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        return self.paint(self.states(z, condition))

    def states(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        """z [B, at most `tokens`, dim] at the bottleneck's own scale to what the head reads, [B, patches, width].

        Fewer are the first ones, for a tokenizer that has been trained with the perturbation `prefix_drop`.
        """
        self.check_prefix(z)
        return self.decoder(z, self.captions_for("decoder", condition))

    def paint(self, h: Tensor) -> Tensor:
        """States of patches [B, patches, width] to images in [-1, 1], by a head that is told their grid."""
        grid = patch_grids(type(self).__name__.lower(), Arguments.from_config(self))[1]
        return (self.output(h, grid) - self.offset) / self.factor

    def captions_for(self, half: str, condition: Condition | None) -> Tensor | None:
        """The features of captions [B, T, C] where the half reads them; ValueError where it does and none are given."""
        if half not in self.reads_captions:
            return None
        return caption_features(condition, Arguments.from_config(self), f"the {half} of this {type(self).__name__}")

    def position_tokens(self, name: str, output: Tensor) -> Tensor:
        half = name.partition(".")[0]
        if output.ndim != 3 or half not in ("encoder", "decoder"):
            return super().position_tokens(name, output)
        return image_tokens(output, self.get_submodule(half).patches, int(self.class_token))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.output.last_layer

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"encoder": [self.encoder, self.neck], "decoder": [self.decoder, self.output]}


def patch_grids(kind: str, arguments: Arguments) -> tuple[Sides, Sides]:
    """Rows and columns of the patches that are read and made; ValueError where a patch does not divide the sides."""
    read, made = arguments.patch_size, arguments.decoder_patch_size or arguments.patch_size
    with at(kind):
        return (
            divide(arguments.image_size, read, f"patch_size {read}; change one"),
            divide(arguments.image_size, made, f"decoder_patch_size {made}; change one"),
        )
