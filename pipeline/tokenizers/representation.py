"""The tokenizer whose encoder is a frozen vision model, with a trained branch beside it or without."""

from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.draws import Draws, PartDraws
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.convolution_stages import MapSizes
from pipeline.nn.feature_decoder import DECODERS
from pipeline.nn.image_size import sides_of
from pipeline.nn.texture_branch import BRANCHES
from pipeline.ranges import Count, ImageSize
from pipeline.tokenizers.base import DERIVED_ARGUMENTS, MapTokenizer, TrainingInputs
from pipeline.vision.frozen_encoder import ENCODERS, OnFrozenEncoder, needs_stand_in


class Representation(OnFrozenEncoder, MapTokenizer):
    """RAE (Zheng et al., arXiv:2510.11690), SVG (arXiv:2510.15301) and the autoencoder of DINO-Tok (arXiv:2511.20565).

    The code of a position is the channels of a frozen network's last tap, unchanged, and after them those of a branch
    that is trained with the decoder. Each part is chosen by its kind:

    - `frozen_encoder`: `vision_transformer`, of transformers, or `stand_in`, a small classifier of the recipe's own
      images (see pipeline/vision/frozen_encoder.py);
    - `texture_branch`: `residual` (SVG), `shallow` (DINO-Tok) or null (RAE; see pipeline/nn/texture_branch.py);
    - `pixel_decoder`: `vit` (RAE) or `conv` (SVG; see pipeline/nn/feature_decoder.py).

    `statistics` says whose mean and std bring a code to unit scale: those of each channel, or of each channel at each
    position, as RAE's, which binds the tokenizer to one grid. A saved folder holds the frozen weights and needs nothing
    else. The frozen network is a part of no phase's training, whichever part that trains.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["PreNormBlock"]
    _repeated_blocks = ["PreNormBlock", "DroppingBlock", "UpLevel", "Middle"]
    _skip_layerwise_casting_patterns = ["norm", "stem", "embeddings", "head.attention"]

    choices = {"frozen_encoder": ENCODERS, "texture_branch": BRANCHES, "pixel_decoder": DECODERS}

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        frozen_encoder: Node,
        pixel_decoder: Node,
        texture_branch: Node | None = None,
        statistics: Literal["channel", "element"] = "channel",
        image_channels: Count = 3,
    ):
        maps, spec = self.plan(Arguments.from_config(self))
        super().__init__(spec.dim, spec.tokens if statistics == "element" else None)
        self.spec = spec
        self.encoder = build_part(ENCODERS, frozen_encoder, "frozen_encoder", image_size=image_size)
        shape = {"maps": maps, "image_size": image_size, "image_channels": image_channels}
        self.texture = build_part(BRANCHES, texture_branch, "texture_branch", **shape)
        self.neck = components.build("bottlenecks", {"kind": "identity", "dim": spec.dim})
        stride = sides_of(image_size)[0] // spec.grid[0]
        shape = {"inputs": spec.dim, "stride": stride, "image_channels": image_channels}
        self.decoder = build_part(DECODERS, pixel_decoder, "pixel_decoder", **shape)
        self.keep_source()
        self.encoder.requires_grad_(False)

    @classmethod
    def plan(cls, arguments: Arguments) -> tuple[MapSizes, LatentSpec]:
        """The maps that the frozen encoder gives, and the spec of the code that is made of them."""
        encoder, encoder_arguments = choose_part(ENCODERS, arguments.frozen_encoder, "frozen_encoder")
        maps = encoder.layout(encoder_arguments | {"image_size": arguments.image_size})
        dim, grid = maps[-1]
        if arguments.texture_branch is not None:
            branch, branch_arguments = choose_part(BRANCHES, arguments.texture_branch, "texture_branch")
            dim += branch.check(branch_arguments | {"maps": maps})
        elif len(maps) > 1:
            raise ValueError(f"{len(maps)} taps without a texture_branch that reads them; name one, for example [-1]")
        decoder, decoder_arguments = choose_part(DECODERS, arguments.pixel_decoder, "pixel_decoder")
        stride = sides_of(arguments.image_size)[0] // grid[0]
        decoder.check(decoder_arguments | {"stride": stride, "image_size": arguments.image_size})
        return maps, LatentSpec(grid, dim)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        try:
            return cls.plan(arguments)[1]
        except ValueError as error:
            raise ValueError(f"representation: {error}") from None

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        if arguments.texture_branch is None:
            return super().batch_statistics(arguments)
        branch, _ = choose_part(BRANCHES, arguments.texture_branch, "texture_branch")
        return (*super().batch_statistics(arguments), *branch.batch_statistics())

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(transforms=True, needs_stand_in=needs_stand_in(arguments.frozen_encoder))

    def encode_map(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        """As in the base; with draws, the branches of some images are left out."""
        maps = self.encoder(images)
        if self.texture is None:
            return maps[-1]
        draws = None if draws is None else PartDraws(draws, "encoder")
        return torch.cat([maps[-1], self.texture(images, maps, draws)], dim=1)

    def decode_map(self, maps: Tensor) -> Tensor:
        return self.decoder(maps)

    def encode_for_training(self, images: Tensor, given: TrainingInputs) -> tuple[Code, Tensor, dict[str, Tensor]]:
        self.grid(images)
        h = self.encode_map(images, given.draws if self.training else None).flatten(2).mT
        return self.apply_bottleneck(h, given)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.last_layer

    def parts(self) -> dict[str, list[nn.Module]]:
        texture = [] if self.texture is None else [self.texture]
        return {"encoder": [self.encoder, *texture, self.neck], "decoder": [self.decoder]}


def choose_part(choices: dict[str, type], node: Node, where: str) -> tuple[type, Arguments]:
    return components.choose(choices, node, DERIVED_ARGUMENTS, where)


def build_part(choices: dict[str, type], node: Node | None, where: str, **derived: Any) -> nn.Module | None:
    """The part that a node chooses, None of none."""
    if node is None:
        return None
    cls, arguments = choose_part(choices, node, where)
    return cls(**arguments | derived)
