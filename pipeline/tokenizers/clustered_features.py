"""The tokenizer of clustered features of a frozen vision model, whose decoder writes the ids of a pixel tokenizer."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.draws import GOLDEN, PartDraws, uniform_by_seed
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.finite import check_finite
from pipeline.nn.prefixed_transformer import PrefixedTransformer, cross_entropy
from pipeline.nn.transformer_sizes import check_heads
from pipeline.ranges import Count, FractionAboveZero, FractionBelowOne, ImageSize, NotNegative, Positive, Whole
from pipeline.samplers.choice import LOGITS, Choice
from pipeline.saved_folders import load_tokenizer
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput, TrainingInputs
from pipeline.vision.encoder_choice import choose_encoder, tapped_map
from pipeline.vision.frozen_encoder import ENCODERS, OnFrozenEncoder, needs_stand_in
from pipeline.vision.named_model import NamedModel

IMAGES = ("image_size", "image_channels")  # arguments that the pixel tokenizer has of the whole


class ClusteredFeatures(OnFrozenEncoder, Tokenizer):
    """DiGIT (Zhu et al., arXiv:2410.12490): the id of a position is the cluster of a frozen network's features there.

    Clusters, `vocab` of them, are found by k-means while the first phase trains, see the bottleneck `k_means`, and no
    loss of images shapes them. Images are made of ids in two steps: the `translator`, a transformer of `width`, `depth`
    and `heads`, writes the ids of a pixel tokenizer after those of the code, and the pixel tokenizer decodes them. The
    frozen network is chosen as in `representation`; the pixel tokenizer is any that gives one id per token and reads no
    captions, with the weights of the folder `pixel_start` where that is given, which is read once, when a new tokenizer
    is built. A phase with train=pixels trains the pixel tokenizer, one with train=translator the transformer.

    The translator chooses by `temperature`, `top_k` and `top_p`, with random numbers that are functions of the code, so
    that a code has one image. What `forward` rebuilds is the pixel tokenizer's image of its own ids, which the
    translator is to write: losses of pixels train the pixel tokenizer alone.

    Terms: `pixel_ids`, the translator's cross-entropy with `smoothing`, and the pixel tokenizer's own.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CausalBlock", "PostNormCausalBlock"]
    _repeated_blocks = ["CausalBlock", "PostNormCausalBlock"]
    _skip_layerwise_casting_patterns = ["norm", "stem", "embeddings", "table", "positions", "start"]

    choices = {"frozen_encoder": ENCODERS}

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        frozen_encoder: Node,
        pixel_tokenizer: Node,
        vocab: Count,
        width: Count,
        depth: Count,
        heads: Count,
        feed_forward_ratio: Positive = 4.0,
        rounds: Count = 20,
        images: Count = 8192,
        post_norm: bool = False,
        special_ids: Whole = 0,
        dropout: FractionBelowOne = 0.1,
        smoothing: FractionBelowOne = 0.1,
        temperature: NotNegative = 1.0,
        top_k: Whole = 0,
        top_p: FractionAboveZero = 0.8,
        pixel_start: str | None = None,
        image_channels: Count = 3,
    ):
        arguments = Arguments.from_config(self)
        spec = self.geometry(arguments)
        super().__init__(spec.dim)
        self.spec = spec
        encoder, encoder_arguments = choose_encoder(frozen_encoder, image_size)
        self.encoder = encoder(**encoder_arguments)
        self.neck = components.build("bottlenecks", clusters(arguments, spec.dim))
        self.pixels = components.build("tokenizers", pixel_tokenizer, **pixel_images(arguments))
        written = self.pixels.spec
        sizes = (width, depth, heads, int(feed_forward_ratio * width))
        self.translator = PrefixedTransformer(
            *(spec.tokens, vocab, written.tokens, written.vocab, *sizes, post_norm, special_ids, dropout)
        )
        self.choice = Choice(temperature, top_k, top_p)
        self.keep_source()
        self.encoder.requires_grad_(False)
        if pixel_start is not None and torch.empty(0).device.type != "meta":
            self.start_from(pixel_start)
            self.register_to_config(pixel_start=None)  # a saved folder is whole without it

    @classmethod
    def named_models(cls, arguments: Arguments) -> dict[str, NamedModel]:
        named = super().named_models(arguments)
        return named | ({} if arguments.pixel_start is None else {"pixel_start": NamedModel(arguments.pixel_start)})

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        check_heads("clustered_features", arguments.width, arguments.heads)
        dim, grid = tapped_map(arguments.frozen_encoder, arguments.image_size)
        kind, (pixels, pixel_arguments) = arguments.pixel_tokenizer["kind"], choose_pixels(arguments)
        written = pixels.geometry(pixel_arguments)
        if not written.vocab or written.codebooks != 1 or pixels.capabilities(pixel_arguments).captions:
            raise ValueError(
                f"clustered_features: the decoder writes one id per token, which a {kind} like this does not read;"
                " give pixel_tokenizer a codebook, and one that reads no captions"
            )
        Choice(arguments.temperature, arguments.top_k, arguments.top_p).validate(written.vocab)
        return components.build("bottlenecks", clusters(arguments, dim)).spec(grid)

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        pixels, pixel_arguments = choose_pixels(arguments)
        return ("pixel_ids", *pixels.terms(pixel_arguments))

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        pixels, pixel_arguments = choose_pixels(arguments)
        neck, values = components.check("bottlenecks", clusters(arguments, 1))
        return (*neck.batch_statistics(values), *pixels.batch_statistics(pixel_arguments))

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(
            parts=("all", "encoder", "decoder", "translator", "pixels"),
            parts_without_pixels=("translator",),
            needs_stand_in=needs_stand_in(arguments.frozen_encoder),
        )

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_images(images)
        return self.encoder(images)[-1].flatten(2).mT

    def render(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        return self.pixels.decode(Code(ids=self.translate(self.neck.nearest(z))))

    def translate(self, ids: Tensor) -> Tensor:
        """The ids [B, M] of the pixel tokenizer that the translator chooses for ids [B, N] of a code."""
        uniform = uniforms_of(ids, self.pixels.spec.tokens)

        def choose(logits: Tensor, place: int) -> Tensor:
            check_finite(logits.amax(dim=-1, keepdim=True), LOGITS)
            return self.choice(logits, uniform[:, place])

        return self.translator.sample(ids, choose)

    def reconstruct(self, images: Tensor, given: TrainingInputs, pixels: bool = True) -> TokenizerOutput:
        code, z, _ = self.encode_for_training(images, given)
        draws = given.draws
        inner = TrainingInputs(draws=None if draws is None else PartDraws(draws, "pixels"))
        written, rows, terms = self.pixels.encode_for_training(images, inner)
        dropout = PartDraws(draws, "translator") if self.training and draws is not None else None
        logits = self.translator(self.neck.nearest(z), written.ids[:, :-1], dropout)
        terms = {"pixel_ids": cross_entropy(logits, written.ids, self.config.smoothing)} | terms
        return TokenizerOutput(self.pixels.render(rows) if pixels else None, code, terms)

    def start_from(self, folder: str) -> None:
        """Take the weights of the pixel tokenizer in `folder`; ValueError where they are of another kind or size."""
        other = load_tokenizer(folder, "pixel_start")
        theirs, ours = ({n: v.shape for n, v in model.state_dict().items()} for model in (other, self.pixels))
        if type(other) is not type(self.pixels) or theirs != ours:
            raise ValueError(f"pixel_start: {folder} is another tokenizer than pixel_tokenizer states; make them equal")
        self.pixels.load_state_dict(other.state_dict())

    @property
    def last_layer(self) -> nn.Parameter:
        return self.pixels.last_layer

    def parts(self) -> dict[str, list[nn.Module]]:
        return {
            "encoder": [self.encoder, self.neck],
            "decoder": [self.translator, *self.pixels.parts()["decoder"]],
            "translator": [self.translator],
            "pixels": [self.pixels],
        }


def choose_pixels(arguments: Arguments) -> tuple[type[Tokenizer], Arguments]:
    """The class of the pixel tokenizer and its arguments, those of the images included where they are known."""
    derived = pixel_images(arguments)
    kind, values = components.check("tokenizers", arguments.pixel_tokenizer, IMAGES, "pixel_tokenizer")
    return kind, values | derived


def pixel_images(arguments: Arguments) -> dict[str, Any]:
    return {name: arguments[name] for name in IMAGES if name in arguments}


def clusters(arguments: Arguments, dim: int) -> Node:
    """The node of the bottleneck of features of so many channels."""
    return {"kind": "k_means", "dim": dim} | {name: arguments[name] for name in ("vocab", "rounds", "images")}


def uniforms_of(ids: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), [B, count]: row i is a function of the ids [N] in row i alone."""
    places = torch.arange(ids.shape[1], device=ids.device)
    seeds = ((ids + 1) * (2 * places + 1) * GOLDEN).sum(dim=1).cpu()[:, None] + torch.arange(count)
    return uniform_by_seed(seeds.flatten(), "pixel_ids").view(len(ids), count).to(ids.device)
