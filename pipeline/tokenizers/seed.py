"""The tokenizer of causal queries over a frozen vision model, whose ids are learned without any pixels."""

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Condition, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.convolution import Tower
from pipeline.nn.embeddings import learned_vectors
from pipeline.nn.pixel_decoder import PixelDecoder
from pipeline.nn.query_former import QueryFormer
from pipeline.nn.transformer_sizes import check_heads
from pipeline.nn.vision_transformer import PreNormBlock
from pipeline.ranges import Count, ImageSize
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput, TrainingInputs
from pipeline.vision.encoder_choice import choose_encoder, tapped_map
from pipeline.vision.frozen_encoder import ENCODERS, OnFrozenEncoder, needs_stand_in


class ReadTokens(nn.Module):
    """A layer norm of the frozen network's tokens [B, M, channels], and learned positions of its `places` or none."""

    def __init__(self, channels: int, places: int | None):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.positions = None if places is None else learned_vectors(places, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.norm(tokens)
        return h if self.positions is None else h + self.positions


class Branch(Tower):
    """Tokens [B, n, width], at most `tokens`, with positions through pre-norm blocks."""

    def __init__(self, tokens: int, width: int, depth: int, heads: int):
        super().__init__()
        self.positions = learned_vectors(tokens, width)
        self.blocks = nn.ModuleList(PreNormBlock(width, heads, epsilon=1e-6) for _ in range(depth))

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.positions[: h.shape[1]]
        for block in self.blocks:
            h = self.run(block, h)
        return h


class ImageBranch(nn.Module):
    """Tokens [B, n, width] to a vector of the whole image, [B, outputs]: a branch, and one query that reads it."""

    def __init__(self, branch: Branch, width: int, depth: int, heads: int, hidden: int, outputs: int):
        super().__init__()
        self.branch = branch
        self.reader = QueryFormer(1, width, width, depth, heads, hidden, causal=False)
        self.projection = nn.Linear(width, outputs)

    def forward(self, h: Tensor) -> Tensor:
        return self.projection(self.reader(self.branch(h))[:, 0])


class Seed(OnFrozenEncoder, Tokenizer):
    """SEED (Ge et al., arXiv:2307.08041 and 2310.01218): `tokens` causal queries read a frozen network, and are ids.

    Of the queries' states, [B, tokens, width], the bottleneck reads a projection, and two branches are made of ids: the
    states again, whose term `semantic` is 1 - their cosine with the encoder's, and `image_embedding` [B,
    embedding_width], a feature for the loss `image_embedding`. The published weights of terms are commit 5, vq 1.25,
    semantic 2, image_embedding 0.5. If `causal`, query i depends on those before it alone, and so do the first few ids.

    In the paper queries are trained before, with captions (contrast, matching, and writing them), and are fixed while
    ids are learned: train=ids is that, and train=features trains queries too, which is ours, as are pixels: there, a
    diffusion model makes pictures of the embedding; here the decoder of TiTok (`pixel_width`, `pixel_depth`,
    `pixel_heads`, patches of `pixel_patch`) makes them of the states, and train=pixel_decoder trains it alone.
    `place_positions` adds learned positions to what queries read, which maps of convolutions lack.
    """

    run_arguments = ()
    _supports_gradient_checkpointing = True
    _no_split_modules = ["PreNormBlock", "QueryFormerBlock"]
    _repeated_blocks = ["PreNormBlock", "QueryFormerBlock"]
    _skip_layerwise_casting_patterns = ["norm", "stem", "embeddings"]

    choices = {"frozen_encoder": ENCODERS}

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        frozen_encoder: Node,
        bottleneck: Node,
        tokens: Count,
        width: Count,
        depth: Count,
        heads: Count,
        hidden: Count,
        branch_depth: Count = 4,
        branch_heads: Count | None = None,
        reader_depth: Count = 4,
        embedding_width: Count = 1024,
        pixel_width: Count = 512,
        pixel_depth: Count = 8,
        pixel_heads: Count = 8,
        pixel_patch: Count = 16,
        causal: bool = True,
        place_positions: bool = False,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        arguments = Arguments.from_config(self)
        self.spec, (channels, grid) = self.geometry(arguments), tapped_map(frozen_encoder, image_size)
        encoder, encoder_arguments = choose_encoder(frozen_encoder, image_size)
        self.encoder = encoder(**encoder_arguments)
        self.embedding = ReadTokens(channels, math.prod(grid) if place_positions else None)
        self.query_former = QueryFormer(tokens, channels, width, depth, heads, hidden, causal)
        self.to_code = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, neck.inputs))
        self.neck = neck
        self.from_code = nn.Sequential(nn.Linear(neck.dim, neck.dim), nn.Tanh(), nn.Linear(neck.dim, width))
        sizes = (tokens, width, branch_depth, branch_heads or heads)
        self.semantic_branch = Branch(*sizes)
        self.image_branch = ImageBranch(Branch(*sizes), width, reader_depth, heads, hidden, embedding_width)
        self.pixel_decoder = PixelDecoder(width, tokens, arguments)
        self.keep_source()
        self.encoder.requires_grad_(False)

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        check_heads("seed", arguments.width, arguments.heads)
        check_heads("seed", arguments.width, arguments.branch_heads or arguments.heads)
        PixelDecoder.validate("seed", arguments)
        tapped_map(arguments.frozen_encoder, arguments.image_size)
        return components.build("bottlenecks", arguments.bottleneck).spec((arguments.tokens,))

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return (*super().terms(arguments), "semantic")

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(
            parts=("all", "encoder", "decoder", "ids", "features", "pixel_decoder"),
            parts_without_pixels=("encoder", "ids", "features"),
            features=("image_embedding",),
            prefixes=True,
            embedding_width=arguments.embedding_width,
            needs_stand_in=needs_stand_in(arguments.frozen_encoder),
        )

    def states(self, images: Tensor) -> Tensor:
        """The queries' states of images, [B, tokens, width]."""
        self.check_images(images)
        with torch.no_grad():
            tokens = self.encoder.last_tokens(images)  # as the model gives them, for a norm follows here
        return self.read(tokens.to(images.dtype))

    def read(self, tokens: Tensor) -> Tensor:
        """The queries' states of the frozen network's tokens [B, M, C]."""
        return self.query_former(self.embedding(tokens))

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        return self.to_code(self.states(images))

    def rebuilt_states(self, z: Tensor) -> Tensor:
        """z [B, n, dim] of the first few ids to the queries' states again, [B, n, width]."""
        self.check_prefix(z)
        return self.semantic_branch(self.from_code(z))

    def image_embedding(self, z: Tensor) -> Tensor:
        """z [B, n, dim] to the predicted embedding of the image, [B, embedding_width]."""
        return self.image_branch(self.from_code(z))

    def render(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        return self.pixel_decoder(self.rebuilt_states(z))

    def reconstruct(self, images: Tensor, given: TrainingInputs, pixels: bool = True) -> TokenizerOutput:
        states = self.states(images)
        code, z, terms = self.apply_bottleneck(self.to_code(states), given)
        rebuilt = self.rebuilt_states(z)
        semantic = 1 - F.cosine_similarity(rebuilt.float(), states[:, : rebuilt.shape[1]].detach().float(), -1).mean()
        features = {"image_embedding": self.image_embedding(z)}
        painted = self.pixel_decoder(rebuilt) if pixels else None
        return TokenizerOutput(painted, code, terms | {"semantic": semantic}, features)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.pixel_decoder.last_layer

    def parts(self) -> dict[str, list[nn.Module]]:
        queries, ids = [self.embedding, self.query_former], [self.to_code, self.neck]
        branches = [self.from_code, self.semantic_branch, self.image_branch]
        return {
            "encoder": [self.encoder, *queries, *ids],
            "decoder": [*branches, self.pixel_decoder],
            "ids": [*ids, *branches],
            "features": [*queries, *ids, *branches],
            "pixel_decoder": [self.pixel_decoder],
        }
