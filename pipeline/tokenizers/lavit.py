"""The tokenizer of as many ids as an image needs: some of a frozen network's tokens, which the others merge into."""

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.bottlenecks.base import CodebookQuantizer
from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.draws import Draws
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.pixel_decoder import PixelDecoder
from pipeline.nn.place_vectors import PlaceVectors
from pipeline.nn.processes import global_mean
from pipeline.nn.row_ends import before_end, before_zeros, pack
from pipeline.nn.row_reader import RowReader
from pipeline.nn.token_merger import TokenMerger
from pipeline.nn.token_selector import TokenSelector, likeliest_decisions, sample_decisions
from pipeline.nn.transformer_sizes import check_heads
from pipeline.ranges import Count, FractionAboveZero, ImageSize
from pipeline.samplers.unmasking import gumbel
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput, TrainingInputs
from pipeline.vision.encoder_choice import choose_encoder, tapped_map
from pipeline.vision.frozen_encoder import ENCODERS, OnFrozenEncoder, needs_stand_in


class Lavit(OnFrozenEncoder, Tokenizer):
    """LaVIT's dynamic tokenizer (Jin et al., arXiv:2309.04669): an image becomes as many ids as its content asks for.

    A selector decides for each of the N places of a frozen network's map whether its token is kept; a merger of `depth`
    blocks lets kept tokens read those before them and the features of all that are not kept; the bottleneck, a
    codebook, makes ids of them, and of these `decoder_*` makes the frozen features of every place again, for the loss
    `feature_reconstruction`. A code is a row of N ids: those of the kept tokens, in order, and then the end, the last
    id of the vocabulary, again and again. In z the end is a row of zeros.

    In training decisions are drawn (straight-through Gumbel-softmax), and the term `kept_share` is (`keep` - the share
    of tokens that a batch keeps)^2, there with `keep` a third, and a weight of 2 (unverified). Without draws the
    likeliest tokens are kept, as many as are expected to be, which is ours: the release draws there, too. One is kept
    at least.

    The release makes pictures by a diffusion model that reads `context_width` channels of the rebuilt features. Here
    the decoder of TiTok (`pixel_*`) reads these; train=pixel_decoder trains it alone, and train=ids all the rest.
    `place_positions` adds learned positions to the features, which maps of convolutions lack. With `unit_latents` what
    the bottleneck reads has length one, as released, whatever length the rows have.
    """

    run_arguments = ()
    _supports_gradient_checkpointing = True
    _no_split_modules = ["PreNormBlock", "MergerBlock", "ReaderBlock"]
    _repeated_blocks = ["PreNormBlock", "MergerBlock", "ReaderBlock"]
    _skip_layerwise_casting_patterns = ["norm", "stem", "selector"]

    choices = {"frozen_encoder": ENCODERS}

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        frozen_encoder: Node,
        bottleneck: Node,
        depth: Count,
        heads: Count,
        hidden: Count,
        decoder_width: Count,
        decoder_depth: Count,
        decoder_heads: Count,
        decoder_hidden: Count,
        context_width: Count = 768,
        pixel_width: Count = 512,
        pixel_depth: Count = 8,
        pixel_heads: Count = 8,
        pixel_patch: Count = 16,
        keep: FractionAboveZero = 1 / 3,
        place_positions: bool = False,
        unit_latents: bool = False,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        arguments = Arguments.from_config(self)
        self.spec, (width, _) = self.geometry(arguments), tapped_map(frozen_encoder, image_size)
        places = self.spec.tokens
        encoder, encoder_arguments = choose_encoder(frozen_encoder, image_size)
        self.encoder = encoder(**encoder_arguments)
        self.place_vectors = PlaceVectors(places, width) if place_positions else nn.Identity()
        self.selector = TokenSelector(width)
        self.merger = TokenMerger(width, depth, heads, hidden)
        self.to_code = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, neck.inputs))
        self.neck = neck
        sizes = (decoder_width, decoder_depth, decoder_heads, decoder_hidden)
        self.feature_decoder = RowReader(places, places, neck.dim, *sizes, width)
        self.context = nn.Linear(width, context_width)
        self.pixel_decoder = PixelDecoder(context_width, places, arguments)
        self.keep_source()
        self.encoder.requires_grad_(False)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        width, grid = tapped_map(arguments.frozen_encoder, arguments.image_size)
        check_heads("lavit", width, arguments.heads)
        check_heads("lavit", arguments.decoder_width, arguments.decoder_heads)
        PixelDecoder.validate("lavit", arguments)
        if width % 4:
            raise ValueError(f"lavit: the selector halves the frozen network's {width} channels twice; take another")
        neck = components.build("bottlenecks", arguments.bottleneck)
        if not isinstance(neck, CodebookQuantizer):
            kind = arguments.bottleneck["kind"]
            raise ValueError(f"lavit: {kind} has no one codebook of rows; take the bottleneck vector_quantize")
        return LatentSpec((math.prod(grid),), neck.dim, neck.vocab + 1, ends=True)

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return (*super().terms(arguments), "kept_share")

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        return (*super().batch_statistics(arguments), "the kept_share term")

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(
            parts=("all", "encoder", "decoder", "ids", "pixel_decoder"),
            parts_without_pixels=("encoder", "ids"),
            features=("foundation", "rebuilt_foundation"),
            needs_stand_in=needs_stand_in(arguments.frozen_encoder),
        )

    def foundation(self, images: Tensor) -> Tensor:
        """The frozen network's features of images, [B, N, width], row by row, as it gives them."""
        self.check_images(images)
        with torch.no_grad():
            return self.encoder.maps(images)[-1].flatten(2).mT.to(images.dtype)

    def decide(self, tokens: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Decisions [B, N] of tokens [B, N, width], 1 where one is kept: drawn by `uniform` [B, N, 2], or likeliest."""
        chances = self.selector(tokens)
        return likeliest_decisions(chances) if uniform is None else sample_decisions(chances, gumbel(uniform))

    def latents(self, tokens: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor]:
        """What the bottleneck reads of the kept tokens, in a row as `pack` makes it, and the row's places of them."""
        h = self.to_code(self.merger(tokens, decisions.to(tokens.dtype)))
        return pack(F.normalize(h, dim=-1) if self.config.unit_latents else h, decisions.detach() > 0.5)

    def row(self, images: Tensor, uniform: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `latents`, of images; see `decide`."""
        tokens = self.place_vectors(self.foundation(images))
        return self.latents(tokens, self.decide(tokens, uniform))

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        return self.row(images)[0]

    def encode(self, images: Tensor, condition: Condition | None = None, draws: Draws | None = None) -> Code:
        uniform = None if draws is None else self.draw(draws)
        size = 1 if self.use_slicing else len(images)
        noise = [None] * len(images) if uniform is None else uniform.split(size)
        rows, filled = (torch.cat(parts) for parts in zip(*map(self.row, images.split(size), noise)))
        code, _ = self.neck(rows, draws)
        code = self.with_end(code, filled)
        return Code(z=self.normalize(code.z), ids=code.ids)

    def draw(self, draws: Draws) -> Tensor:
        """The uniform numbers [B, N, 2] that decisions are drawn by."""
        return draws.uniform("kept", (self.spec.tokens, 2))

    def with_end(self, code: Code, filled: Tensor) -> Code:
        """A code whose places that are not `filled` [B, N] are the end."""
        return Code(z=code.z * filled[..., None], ids=code.ids.masked_fill(~filled, self.spec.codes))

    def decoder_input(self, code: Code) -> Tensor:
        if code.z is not None:
            return super().decoder_input(code)
        filled = before_end(code.ids, self.spec.codes)
        return self.neck.lookup(code.ids.clamp(max=self.spec.codes - 1)) * filled[..., None]

    def rebuild(self, z: Tensor) -> Tensor:
        """z [B, N, dim] to the frozen network's features again, [B, N, width]; a row without tokens is read as one."""
        first = torch.arange(z.shape[1], device=z.device) == 0
        return self.feature_decoder(z, before_zeros(z) | first)

    def render(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        return self.paint(self.rebuild(z))

    def paint(self, features: Tensor) -> Tensor:
        """Rebuilt features [B, N, width] to images."""
        return self.pixel_decoder(self.context(features))

    def reconstruct(self, images: Tensor, given: TrainingInputs, pixels: bool = True) -> TokenizerOutput:
        foundation = self.foundation(images)
        tokens = self.place_vectors(foundation)
        decisions = self.decide(tokens, None if given.draws is None else self.draw(given.draws))
        h, filled = self.latents(tokens, decisions)
        code, z, terms = self.apply_bottleneck(h, given)
        rebuilt = self.rebuild(z * filled[..., None])
        terms = terms | {"kept_share": (self.config.keep - global_mean(decisions.mean())).square()}
        features = {"foundation": foundation, "rebuilt_foundation": rebuilt}
        return TokenizerOutput(self.paint(rebuilt) if pixels else None, self.with_end(code, filled), terms, features)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.pixel_decoder.last_layer

    def parts(self) -> dict[str, list[nn.Module]]:
        ids = [self.place_vectors, self.selector, self.merger, self.to_code, self.neck]
        pixels = [self.context, self.pixel_decoder]
        return {
            "encoder": [self.encoder, *ids],
            "decoder": [self.feature_decoder, *pixels],
            "ids": [*ids, self.feature_decoder],
            "pixel_decoder": pixels,
        }
