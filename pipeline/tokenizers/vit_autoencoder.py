"""The autoencoder of two vision transformers, whose code has one token per patch."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.draws import Draws
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.class_projection import ProjectsClassFeatures
from pipeline.nn.grid_transformer import (
    GridTransformer,
    Initialisation,
    OuterNorms,
    PatchDecoder,
    PatchEncoder,
    Position,
    initialise,
)
from pipeline.nn.image_size import divide
from pipeline.nn.map_transform import UNCHANGED, MapTransform
from pipeline.nn.patch_heads import Head, tokens_to_map
from pipeline.nn.token_drop import draw_kept_positions, scatter_tokens
from pipeline.nn.transformer_sizes import both_sizes, check_heads
from pipeline.ranges import Count, ImageSize, Number, Positive
from pipeline.tokenizers.base import MapTokenizer, TokenizerOutput, TrainingInputs
from pipeline.validation import Range, at


class VitAutoencoder(ProjectsClassFeatures, MapTokenizer):
    """A vision transformer from patches to the bottleneck, and another from the code to patches of pixels.

    ViTok (Hansen-Estruch et al., arXiv:2501.09755) is layer norm, SwiGLU and a transposed convolution; ViTok-v2 has
    `parallel` blocks with `layer_scale` and no `bias`, RMS norm and the bottleneck `layer_norm`; RecTok (Shi et al.,
    arXiv:2512.13421) RMS norm, rotary and learned positions, a 3x3 convolution at the end and `token_drop`. Encoder and
    decoder have the same `width`, `depth`, `heads` and `feed_forward_width` unless given, and the same switches, which
    are those of `pipeline.nn.grid_transformer`; a `feed_forward_width` takes the place of `feed_forward_ratio`, of
    which SwiGLU has two thirds. Where no positions are learned, images and codes may be of other sizes.

    With `token_drop` [low, high] a phase that trains the encoder drops, at each step, the fraction max(0, U(low, high))
    of the patches, one for the whole batch, at positions that each image draws. The decoder reads all positions, those
    dropped as a learned mask token; the feature `kept` [B, N] bool says which were not, and the code's z is 0 at the
    dropped ones, which have no ids. Without draws, in evaluation mode, in `encode` and where
    the encoder is frozen, nothing is dropped.

    Pixels are [-1, 1] inside as outside, and nothing is clamped.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["PlainBlock"]
    _repeated_blocks = ["PlainBlock"]
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
        decoder_width: Count | None = None,
        decoder_depth: Count | None = None,
        decoder_heads: Count | None = None,
        position: Position = "rotary",
        norm: Literal["layer", "rms"] = "layer",
        outer_norms: OuterNorms = "last",
        feed_forward: Literal["gelu", "swiglu"] = "swiglu",
        feed_forward_ratio: Positive = 4.0,
        query_key_norm: bool = False,
        parallel: bool = False,
        layer_scale: Number | None = None,
        head: Head = "linear",
        feed_forward_width: Count | None = None,
        decoder_feed_forward_width: Count | None = None,
        bias: bool = True,
        token_drop: list[Annotated[float, Range(high=1, open_high=True)]] = [0.0, 0.0],  # noqa: B006  never changed; saved as JSON
        initialisation: Initialisation = "xavier",
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        self.spec = self.geometry(Arguments.from_config(self))
        sizes = both_sizes(Arguments.from_config(self))
        options = {"feed_forward": feed_forward, "ratio": feed_forward_ratio, "query_key_norm": query_key_norm}
        options |= {"parallel": parallel, "layer_scale": layer_scale, "bias": bias}
        reading, painting = (
            GridTransformer(self.map_grid, *size, position, outer_norms, norm, hidden=hidden, **options)
            for size, hidden in zip(sizes, (feed_forward_width, decoder_feed_forward_width or feed_forward_width))
        )
        self.encoder = PatchEncoder(reading, patch_size, neck.inputs, image_channels)
        self.neck = neck
        self.decoder = PatchDecoder(painting, patch_size, neck.dim, head, drops_tokens(token_drop), image_channels)
        for module in (self.encoder, self.decoder):
            initialise(module, initialisation)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        patch_size, token_drop = arguments.patch_size, arguments.token_drop
        with at("vit_autoencoder"):
            grid = divide(arguments.image_size, patch_size, f"patch_size {patch_size}")
        for width, _, heads in both_sizes(arguments):
            check_position(arguments.position, width, heads)
        if len(token_drop) != 2 or not token_drop[0] <= token_drop[1] < 1:
            raise ValueError(
                f"vit_autoencoder: token_drop is {list(token_drop)}; state the least and the largest fraction of"
                " patches, the larger one second and below 1"
            )
        spec = components.build("bottlenecks", arguments.bottleneck).spec(grid)
        if spec.levels and drops_tokens(token_drop):
            raise ValueError("vit_autoencoder: token_drop leaves no whole map to make levels of; leave it out")
        return spec

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        dropping = drops_tokens(arguments.token_drop)  # there are positions without a code then
        return Capabilities(
            features=("kept",) if dropping else (), transforms=not dropping, projection_width=arguments.width
        )

    def projection(self, features: Tensor) -> Tensor:
        return self.encoder.projection(features)

    def encode_map(self, images: Tensor) -> Tensor:
        return tokens_to_map(self.encoder(images), self.grid(images))

    def decode_map(self, maps: Tensor) -> Tensor:
        return self.decoder(maps.flatten(2).transpose(1, 2), tuple(maps.shape[2:]))

    def reconstruct(
        self, images: Tensor, given: TrainingInputs, transform: MapTransform = UNCHANGED
    ) -> TokenizerOutput:
        if not drops_tokens(self.config.token_drop):
            return super().reconstruct(images, given, transform)
        grid = self.grid(images)
        visible = self.visible_positions(len(images), grid[0] * grid[1], given.draws, images.device)
        code, z, terms = self.apply_bottleneck(self.encoder(images, visible), given)
        clean, kept = scatter_tokens(code.z, visible, grid[0] * grid[1])
        z, _ = scatter_tokens(z, visible, grid[0] * grid[1])
        return TokenizerOutput(self.decoder(z, grid, kept), Code(clean, code.ids), terms, {"kept": kept})

    def visible_positions(self, batch: int, positions: int, draws: Draws | None, device: torch.device) -> Tensor:
        """The positions [B, K], in order, whose patches the encoder reads at this step."""
        if draws is not None and self.training and self.encoder.projection.weight.requires_grad:
            return draw_kept_positions(draws, positions, *self.config.token_drop).to(device)
        return torch.arange(positions, device=device).expand(batch, -1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.head.last_layer

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"encoder": [self.encoder, self.neck], "decoder": [self.decoder]}


def drops_tokens(token_drop: Sequence[float]) -> bool:
    """Whether any patch is ever left out."""
    return token_drop[1] > 0


def check_position(position: Position, width: int, heads: int) -> None:
    """ValueError where that width cannot hold these positions."""
    check_heads("vit_autoencoder", width, heads)
    if "fixed" in position and width % 4:
        raise ValueError(f"vit_autoencoder: position={position} needs a width divisible by 4, not {width}")
    multiple = 2 if position == "rotary_sequence" else 4
    if "unit" in position and width // heads < 8:
        raise ValueError(f"vit_autoencoder: position={position} needs width / heads of 8 or more, not {width // heads}")
    if "rotary" in position and width // heads % multiple:
        raise ValueError(
            f"vit_autoencoder: position={position} needs width / heads divisible by {multiple}, not {width // heads}"
        )
