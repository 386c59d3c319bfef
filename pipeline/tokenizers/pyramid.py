"""The tokenizer that compresses several layers of a frozen vision model, and decodes images at every scale."""

from typing import Annotated

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import LatentSpec
from pipeline.components import Arguments, Node
from pipeline.nn.attention_projection import AttentionProjection
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.convolution_stages import MapSizes
from pipeline.nn.map_transform import UNCHANGED, MapTransform
from pipeline.nn.pyramid_decoder import PyramidDecoder
from pipeline.ranges import Count, Counts, Whole
from pipeline.tokenizers.base import DERIVED_ARGUMENTS, MapTokenizer, TokenizerOutput, TrainingInputs
from pipeline.validation import Range
from pipeline.vision.frozen_encoder import ENCODERS, FrozenEncoder, OnFrozenEncoder, needs_stand_in


class Pyramid(OnFrozenEncoder, MapTokenizer):
    """VFM-VAE (arXiv:2510.18457), without its losses; written from its description.

    An attention projection brings every tap of `frozen_encoder` to `tap_width` channels, and positions are folded into
    channels until a side has `side` of them; one more projection of all taps gives the bottleneck's input. The
    decoder's input are `code_width` channels, projected from the code: their mean modulates all of its levels, and the
    map itself enters the first ones. Its levels have `widths`, the first at half the code's side; `spatial` are the
    channels of the code in the first ones, `attention` the number of levels with attention, `depth` that of modulated
    blocks in each.

    The feature `scales` are the images of all levels but the last, coarse to fine, for a loss that compares them with
    smaller images. The frozen network is a part of no phase's training; a saved folder holds its weights.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Level", "AttentionProjection"]
    _repeated_blocks = ["Level"]
    _skip_layerwise_casting_patterns = ["norm", "stem", "embeddings", "head.attention"]

    choices = {"frozen_encoder": ENCODERS}

    @register_to_config
    def __init__(
        self,
        image_size: Count,
        frozen_encoder: Node,
        bottleneck: Node,
        side: Annotated[int, Range(4)],
        widths: Counts,
        spatial: Counts,
        tap_width: Count = 64,
        code_width: Count = 512,
        attention: Whole = 3,
        depth: Whole = 2,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        self.spec = self.geometry(Arguments.from_config(self))
        encoder, arguments = choose_encoder(frozen_encoder, image_size)
        maps = encoder.layout(arguments)
        self.folds = [tap_side // side for _, tap_side in maps]
        self.encoder = encoder(**arguments)
        self.projections = nn.ModuleList(AttentionProjection(width, tap_width) for width, _ in maps)
        self.joint = AttentionProjection(sum(tap_width * fold**2 for fold in self.folds), neck.inputs)
        self.neck = neck
        self.post = AttentionProjection(neck.dim, code_width)
        self.decoder = PyramidDecoder(code_width, widths, spatial, attention, depth)
        self.keep_source()
        self.encoder.requires_grad_(False)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        try:
            encoder, encoder_arguments = choose_encoder(arguments.frozen_encoder, arguments.image_size)
            check_sides(arguments, encoder.layout(encoder_arguments))
        except ValueError as error:
            raise ValueError(f"pyramid: {error}") from None
        neck = components.build("bottlenecks", arguments.bottleneck)
        return LatentSpec((arguments.side, arguments.side), neck.dim, neck.vocab, neck.codebooks)

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(
            features=("scales",), transforms=True, needs_stand_in=needs_stand_in(arguments.frozen_encoder)
        )

    def encode_map(self, images: Tensor) -> Tensor:
        maps = [project(tap) for project, tap in zip(self.projections, self.encoder(images))]
        folded = [F.pixel_unshuffle(one, fold) if fold > 1 else one for one, fold in zip(maps, self.folds)]
        return self.joint(torch.cat(folded, dim=1))

    def decode_map(self, maps: Tensor) -> Tensor:
        return self.render_scales(maps)[-1]

    def render_scales(self, maps: Tensor) -> list[Tensor]:
        """z as maps [B, C, h, w] to images of every scale, coarse to fine."""
        return self.decoder(self.post(maps))

    def reconstruct(
        self, images: Tensor, given: TrainingInputs, transform: MapTransform = UNCHANGED
    ) -> TokenizerOutput:
        code, z, terms = self.encode_for_training(images, given)
        *scales, image = self.render_scales(self.decoder_map(images, z, transform))
        return TokenizerOutput(image, code, terms, {"scales": scales})

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.colours[-1].weight

    def parts(self) -> dict[str, list[nn.Module]]:
        encoder = [self.encoder, self.projections, self.joint, self.neck]
        return {"encoder": encoder, "decoder": [self.post, self.decoder]}


def choose_encoder(frozen_encoder: Node, image_size: int) -> tuple[type[FrozenEncoder], Arguments]:
    encoder, arguments = components.choose(ENCODERS, frozen_encoder, DERIVED_ARGUMENTS, "frozen_encoder")
    return encoder, arguments | {"image_size": image_size}


def check_sides(arguments: Arguments, maps: MapSizes) -> None:
    """ValueError where taps do not fold to `side` positions per side, or levels do not lead from there to the image."""
    image_size, side, widths, spatial = (arguments[n] for n in ("image_size", "side", "widths", "spatial"))
    if side % 2:
        raise ValueError(f"side is {side}; the first level has half of it, so name an even number from 4 on")
    for _, tap_side in maps:
        if tap_side % side:
            raise ValueError(f"a tap has {tap_side} positions per side, which do not fold to {side}; change one")
    if not widths or side * 2 ** (len(widths) - 2) != image_size:
        last = side * 2 ** (len(widths) - 2)
        raise ValueError(f"{len(widths)} widths lead from {side // 2} to {last:g} pixels per side, not to {image_size}")
    if not 1 <= len(spatial) <= len(widths):
        raise ValueError(f"spatial has {len(spatial)} entries; name one or more, and at most one per level")
    if arguments.code_width % (finest := 4 ** max(0, len(spatial) - 2)):
        raise ValueError(
            f"code_width {arguments.code_width} does not divide by {finest}, as the finest level in spatial needs"
        )
