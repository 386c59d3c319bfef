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
from pipeline.nn.image_size import Sides, sides_of, size_text
from pipeline.nn.map_transform import UNCHANGED, MapTransform
from pipeline.nn.pyramid_decoder import Activation, PyramidDecoder, PyramidShape
from pipeline.ranges import Count, Counts, ImageSize, Whole
from pipeline.tokenizers.base import MapTokenizer, TokenizerOutput, TrainingInputs
from pipeline.validation import Length, Range
from pipeline.vision.encoder_choice import choose_encoder
from pipeline.vision.frozen_encoder import ENCODERS, OnFrozenEncoder, needs_stand_in

ProjectionLayers = Annotated[list[Count], Length(2, 2)]  # before the bottleneck, and after it


class Pyramid(OnFrozenEncoder, MapTokenizer):
    """VFM-VAE (arXiv:2510.18457), without its losses; written after the facts of its release.

    An attention projection brings every tap of `frozen_encoder` to its `tap_widths`, and positions are folded into
    channels until the shorter side has `side` of them; one more projection of all taps gives the bottleneck's input.
    The decoder's input are `code_width` channels, projected from the code: their mean makes the `style` (channels;
    null: `code_width`) that modulates all of its levels, and the map itself enters the first ones. `projection_layers`
    are those of each projection before the bottleneck, and of the one after it.

    The decoder's levels have `widths`, the last one at the image's side and each at twice the side of that before.
    `spatial` are the channels of the code in the first ones, through `activation`; `attention` the layers of it in the
    first ones; `depths` the modulated blocks in each. The last number of `depths` and of `tap_widths` is that of all
    further ones. `blur` follows each upsampling; `noise` is the fixed noise that the released checkpoints (`legacy`)
    have; `mixed` are the channels that the last layer of each of `spatial` reads (null: as many as it makes).

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
        image_size: ImageSize,
        frozen_encoder: Node,
        bottleneck: Node,
        side: Annotated[int, Range(2)],
        widths: Counts,
        spatial: Counts,
        tap_widths: Counts = [64],  # noqa: B006
        code_width: Count = 512,
        style: Count | None = None,
        attention: list[Whole] = [2, 2, 2],  # noqa: B006
        depths: Counts = [4, 4, 4, 4, 3],  # noqa: B006
        projection_layers: ProjectionLayers = [1, 1],  # noqa: B006
        activation: Activation = "leaky_relu",
        blur: bool = True,
        noise: bool = False,
        mixed: Counts | None = None,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        self.spec = self.geometry(Arguments.from_config(self))
        encoder, arguments = choose_encoder(frozen_encoder, image_size)
        maps, (before, after) = encoder.layout(arguments), projection_layers
        self.folds = [min(grid) // side for _, grid in maps]
        self.encoder = encoder(**arguments)
        narrow = [tap_widths[min(i, len(tap_widths) - 1)] for i in range(len(maps))]
        self.projections = nn.ModuleList(AttentionProjection(w, n, before) for (w, _), n in zip(maps, narrow))
        self.joint = AttentionProjection(sum(n * fold**2 for n, fold in zip(narrow, self.folds)), neck.inputs, before)
        self.neck = neck
        self.post = AttentionProjection(neck.dim, code_width, after)
        shape = PyramidShape(widths, spatial, depths, attention, style or code_width, activation, blur, noise, mixed)
        first = tuple(pixels >> (len(widths) - 1) for pixels in sides_of(image_size))
        self.decoder = PyramidDecoder(code_width, side, first, shape, image_channels)
        self.keep_source()
        self.encoder.requires_grad_(False)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        try:
            encoder, encoder_arguments = choose_encoder(arguments.frozen_encoder, arguments.image_size)
            grid = code_grid(arguments, encoder.layout(encoder_arguments))
        except ValueError as error:
            raise ValueError(f"pyramid: {error}") from None
        neck = components.build("bottlenecks", arguments.bottleneck)
        return neck.spec(grid)

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


def code_grid(arguments: Arguments, maps: MapSizes) -> Sides:
    """The grid of the code, to which all taps fold; ValueError where they do not, or levels lead to no such image."""
    side, widths, spatial = (arguments[n] for n in ("side", "widths", "spatial"))
    sides, halvings = sides_of(arguments.image_size), len(widths) - 1
    folds = [min(grid) // side for _, grid in maps]
    for (_, grid), fold in zip(maps, folds):
        if not fold or any(length % fold for length in grid) or min(grid) != fold * side:
            raise ValueError(f"a tap has {size_text(grid)} positions per side, which do not fold to {side}; change one")
    if any(pixels % 2**halvings for pixels in sides) or min(sides) >> halvings < 4:
        raise ValueError(
            f"{len(widths)} widths need images of {4 << halvings} pixels per side or more, a multiple of"
            f" {1 << halvings}, not of {size_text(sides)}; give fewer"
        )
    if len(spatial) > len(widths):
        raise ValueError(
            f"spatial has {len(spatial)} entries; name at most one per level, of which there are {len(widths)}"
        )
    if arguments.mixed is not None and len(arguments.mixed) != len(spatial):
        raise ValueError(
            f"mixed has {len(arguments.mixed)} entries; give one for each of the {len(spatial)} of spatial"
        )
    code, first = tuple(length // folds[-1] for length in maps[-1][1]), min(sides) >> halvings
    for i in range(len(spatial)):
        read = (first << i) // 2  # the code is brought to half of the level's side
        low, high = sorted((side, read))
        if high % low or (high // low) & (high // low - 1) or any(length * read % side for length in code):
            raise ValueError(
                f"a level of {first << i} pixels a side reads a code of {read}, which {size_text(code)} do not fold to"
            )
    return code
