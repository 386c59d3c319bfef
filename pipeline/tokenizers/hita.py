"""The tokenizer with holistic tokens before those of patches, made with the features of a frozen vision model."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.draws import Draws, PartDraws
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.convolution import Decoder, Encoder
from pipeline.nn.holistic import FoundationShape, HolisticDecoder, HolisticEncoder
from pipeline.nn.image_size import Sides, divide, sides_of
from pipeline.nn.token_mixer import MixerShape
from pipeline.ranges import Count, Counts, FractionBelowOne, ImageSize, Whole
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput, TrainingInputs
from pipeline.vision.encoder_choice import choose_encoder, tapped_map
from pipeline.vision.frozen_encoder import ENCODERS, OnFrozenEncoder, needs_stand_in


class Hita(OnFrozenEncoder, Tokenizer):
    """Zheng et al., arXiv:2507.02358, as far as its release and reference values tell it.

    A convolutional encoder makes a map of `width` channels. A full transformer lets learned holistic tokens, the
    features of `frozen_encoder` and the map's patches see each other; a causal one, without the features, puts the
    holistic tokens before the patches. The bottleneck has a segment for each, with a codebook of its own. A causal
    transformer reads the code, `shift` places early (see `HolisticDecoder`), and a convolutional decoder makes pixels.

    With `rebuild_features` (Hita-U) the decoder also makes the frozen model's features of the holistic tokens alone,
    for the loss `feature_reconstruction`; Hita-V is without. Each transformer has `depth` layers of `heads` heads and
    `hidden` channels in its feed-forward layers; `fusion_head_width` is that of a head in the first one, which else is
    width / heads. `dropout` is of what attention adds; where the release has it is not known here.

    `conv_width * multipliers[i]` are the channels of the map at level i, and the rest is as in `conv_autoencoder`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MixerBlock"]
    _repeated_blocks = ["MixerBlock", "DownLevel", "UpLevel", "Middle"]
    _skip_layerwise_casting_patterns = ["norm", "stem", "embeddings", "head.attention"]

    choices = {"frozen_encoder": ENCODERS}

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        frozen_encoder: Node,
        bottleneck: Node,
        width: Count = 512,
        depth: Count = 3,
        heads: Count = 8,
        hidden: Count = 1368,
        shift: Whole = 4,
        rebuild_features: bool = False,
        dropout: FractionBelowOne = 0.0,
        fusion_head_width: Count | None = None,
        conv_width: Count = 128,
        multipliers: Counts = [1, 1, 2, 2, 4],  # noqa: B006  never changed; saved as JSON
        decoder_multipliers: Counts | None = None,
        blocks: Whole = 2,
        attention: list[Whole] = [4],  # noqa: B006
        groups: Count = 32,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        arguments = Arguments.from_config(self)
        self.spec = self.geometry(arguments)
        cls, encoder_arguments = choose_encoder(frozen_encoder, image_size)
        channels, features_grid = tapped_map(frozen_encoder, image_size)
        (tokens, *_), grid = self.spec.segment_tokens, self.spec.segments[1]
        shape = MixerShape(width, depth, heads, hidden, dropout)
        fusion = shape._replace(head_width=fusion_head_width or width // heads)
        widths = [[conv_width * m for m in each] for each in (multipliers, decoder_multipliers or multipliers)]
        trunk = {"attention_levels": attention, "middle_attention": True, "groups": groups, "channels": image_channels}
        self.encoder = cls(**encoder_arguments)
        self.convolution = Encoder(width, widths[0], blocks, **trunk)
        self.holistic = HolisticEncoder(tokens, grid[0] * grid[1], channels, fusion, shape)
        self.exits = nn.ModuleList(nn.Linear(width, segment.inputs) for segment in neck.segments)
        self.neck = neck
        self.entries = nn.ModuleList(nn.Linear(segment.dim, width) for segment in neck.segments)
        foundation = FoundationShape(channels, features_grid) if rebuild_features else None
        self.reader = HolisticDecoder(tokens, grid, shift, shape, foundation)
        self.decoder = Decoder(width, widths[1], blocks, **trunk)
        self.keep_source()
        self.encoder.requires_grad_(False)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        try:
            tapped_map(arguments.frozen_encoder, arguments.image_size)
            grid = patch_grid(arguments)
        except ValueError as error:
            raise ValueError(f"hita: {error}") from None
        neck = components.build("bottlenecks", arguments.bottleneck)
        if not neck.segments:
            raise ValueError(
                "hita: holistic tokens and patches have codebooks of their own; set"
                " tokenizer.model.bottleneck.kind=two_segments"
            )
        tokens = neck.segments[0].tokens
        if arguments.shift > tokens:
            raise ValueError(f"hita: shift is {arguments.shift}, of {tokens} holistic tokens; give {tokens} or less")
        return replace(neck.spec((tokens + grid[0] * grid[1],)), segments=((tokens,), grid))

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        features = ("foundation", "rebuilt_foundation") if arguments.rebuild_features else ()
        return Capabilities(features=features, needs_stand_in=needs_stand_in(arguments.frozen_encoder))

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_images(images)
        return self.read_features(images, self.encoder.tokens(images))

    def read_features(self, images: Tensor, foundation: Tensor, draws: Draws | None = None) -> Tensor:
        """As `features`, with the frozen model's tokens [B, M, channels] given; draws are of dropout."""
        given = None if draws is None else PartDraws(draws, "encoder")
        rows = self.holistic(self.convolution(images).flatten(2).mT, foundation, given)
        parts = zip(self.exits, rows.split(self.spec.segment_tokens, dim=1))
        made = [leave(part) for leave, part in parts]
        return torch.cat([F.pad(part, (0, self.neck.inputs - part.shape[-1])) for part in made], dim=1)

    def render(self, z: Tensor, condition: Condition | None = None, draws: Draws | None = None) -> Tensor:
        """As in the base; draws are of dropout."""
        if z.shape[1] != self.spec.tokens:
            raise ValueError(
                f"a code of {z.shape[1]} tokens is not this tokenizer's, which has {self.spec.tokens}, and reads no"
                " prefix of them"
            )
        return self.decode_map(self.reader(*self.entered(z), draws))

    def entered(self, z: Tensor) -> list[Tensor]:
        """z [B, N, C] as holistic tokens and patches, each [B, n, width]."""
        parts = zip(self.entries, self.neck.segments, z.split(self.spec.segment_tokens, dim=1))
        return [entry(part[..., : segment.dim]) for entry, segment, part in parts]

    def decode_map(self, tokens: Tensor) -> Tensor:
        """What the convolutional decoder reads, [B, P, width], to images."""
        return self.decoder(tokens.mT.unflatten(2, self.spec.segments[1]))

    def reconstruct(self, images: Tensor, given: TrainingInputs) -> TokenizerOutput:
        self.check_images(images)
        draws, foundation = given.draws if self.training else None, self.encoder.tokens(images)
        code, z, terms = self.apply_bottleneck(self.read_features(images, foundation, draws), given)
        draws, features = None if draws is None else PartDraws(draws, "decoder"), {}
        holistic, patches = self.entered(z)
        if self.config.rebuild_features:
            rebuilt = self.reader.rebuild(holistic, draws)
            features = {"foundation": foundation[:, -rebuilt.shape[1] :], "rebuilt_foundation": rebuilt}
        return TokenizerOutput(self.decode_map(self.reader(holistic, patches, draws)), code, terms, features)

    def decode_for_training(self, code: Code, given: TrainingInputs) -> Tensor:
        draws = None if given.draws is None else PartDraws(given.draws, "decoder")
        return self.render(self.decoder_input(code), given.condition, draws)

    def tokens_within(self, region: Tensor) -> Tensor:
        """As in the base: patches by their cells; holistic tokens are of the whole image, and stay."""
        patches = F.adaptive_max_pool2d(region.float(), self.spec.segments[1]).flatten(1) > 0
        return F.pad(patches, (self.spec.segment_tokens[0], 0))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        encoder = [self.encoder, self.convolution, self.holistic, self.exits, self.neck]
        return {"encoder": encoder, "decoder": [self.entries, self.reader, self.decoder]}


def patch_grid(arguments: Arguments) -> Sides:
    """Rows and columns of patches; ValueError where sizes do not fit together."""
    levels, (width, heads) = len(arguments.multipliers), (arguments.width, arguments.heads)
    if width % heads:
        raise ValueError(f"width {width} is not divisible by heads {heads}; give a multiple of {heads}")
    if arguments.decoder_multipliers is not None and len(arguments.decoder_multipliers) != levels:
        raise ValueError(f"decoder_multipliers has {len(arguments.decoder_multipliers)} levels; give {levels}")
    if outside := [level for level in arguments.attention if level >= levels]:
        raise ValueError(f"attention names level {outside[0]}; the levels are 0 to {levels - 1}")
    stride = 2 ** (levels - 1)
    return divide(sides_of(arguments.image_size), stride, f"{stride}, the stride of {levels} levels")
