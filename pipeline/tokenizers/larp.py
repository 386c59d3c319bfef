"""LARP: learned queries that read a whole image or clip, and a prior of their order that is trained beside them."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Arguments, Node
from pipeline.draws import Draws
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.clip_queries import ClipDecoder, ClipEncoder, ClipPatches
from pipeline.nn.image_size import divide
from pipeline.nn.latent_prior import LatentPrior
from pipeline.nn.transformer_sizes import both_sizes, check_heads
from pipeline.ranges import Count, Fraction, FractionBelowOne, ImageSize, Whole
from pipeline.samplers.choice import Choice
from pipeline.tokenizers.base import Tokenizer, TrainingInputs
from pipeline.validation import at


class Larp(Tokenizer):
    """Wang et al., arXiv:2410.21264: `tokens` queries beside the patches are the code, and a prior learns their order.

    Encoder and decoder are transformers of `width`, `depth` and `heads`, the decoder's the same unless given. The prior
    has `prior_depth` layers (0: none) of `prior_width`; it reads the quantised tokens, and its term `prior` is the
    cross-entropy of the next token's id, whose logits are the products of the predicted vector with the codebook's
    rows, which get no gradient of it: the encoder does. The mean is over `prior_rounds` rounds, in all but the first of
    which a share of the tokens is the prior's own, rising to `prior_share` at step `prior_rise`. The prior stays with
    the weights, and nothing but training reads it. The paper's quantiser is `vector_quantize` with unit_norm and
    sampling_temperature 0.06, of squared distances of vectors of length one: 0.03 of their cosines.

    With `frames` above 1 it reads and makes clips [B, channels, frames, H, W] in place of images, in patches of
    `frame_patch` frames: `forward`, `encode` and `decode`, while the line reads images. Inside, pixels are [0, 1].
    """

    run_arguments = ()
    _supports_gradient_checkpointing = True
    _no_split_modules = ["PreNormBlock", "CausalBlock"]
    _repeated_blocks = ["PreNormBlock", "CausalBlock"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        image_size: ImageSize,
        bottleneck: Node,
        tokens: Count,
        width: Count,
        depth: Count,
        heads: Count,
        patch_size: Count = 8,
        decoder_width: Count | None = None,
        decoder_depth: Count | None = None,
        decoder_heads: Count | None = None,
        query_type: bool = True,
        prior_width: Count = 384,
        prior_depth: Whole = 12,
        prior_heads: Count = 6,
        prior_rounds: Count = 2,
        prior_share: Fraction = 0.5,
        prior_rise: Count = 1,
        prior_dropout: FractionBelowOne = 0.1,
        frames: Count = 1,
        frame_patch: Count = 1,
        image_channels: Count = 3,
    ):
        neck = components.build("bottlenecks", bottleneck)
        super().__init__(neck.dim)
        arguments = Arguments.from_config(self)
        self.spec = self.geometry(arguments)
        grid = (frames // frame_patch, *patch_grid(arguments))
        patches = ClipPatches(grid, (frame_patch, patch_size), image_channels)
        encoder, decoder = both_sizes(arguments)
        self.encoder = ClipEncoder(patches, tokens, encoder, neck.inputs)
        self.neck = neck
        self.decoder = ClipDecoder(patches, tokens, decoder, neck.dim, query_type)
        prior = (prior_width, prior_depth, prior_heads)
        self.prior = LatentPrior(neck.dim, tokens, prior, prior_dropout, Choice()) if prior_depth else None

    @classmethod
    def geometry(cls, arguments: Arguments) -> LatentSpec:
        for width, _, heads in both_sizes(arguments):
            check_heads("larp", width, heads)
            if width % 4:
                raise ValueError(f"larp: positions of rows and columns need a width divisible by 4, not {width}")
        if arguments.frames % arguments.frame_patch:
            raise ValueError(f"larp: patches of {arguments.frame_patch} frames do not fill {arguments.frames} frames")
        patch_grid(arguments)
        spec = components.build("bottlenecks", arguments.bottleneck).spec((arguments.tokens,))
        if arguments.prior_depth:
            check_heads("larp: prior", arguments.prior_width, arguments.prior_heads)
            if not spec.vocab or spec.codebooks > 1 or spec.tokens < 2:
                raise ValueError(
                    "larp: the prior predicts the ids of one codebook, of two tokens or more; set prior_depth=0,"
                    " or take the bottleneck vector_quantize"
                )
        return spec

    @classmethod
    def terms(cls, arguments: Arguments) -> tuple[str, ...]:
        return (*super().terms(arguments), *(("prior",) if arguments.prior_depth else ()))

    @classmethod
    def capabilities(cls, arguments: Arguments) -> Capabilities:
        return Capabilities(frames=arguments.frames, own_rate=("prior",) if arguments.prior_depth else ())

    def check_images(self, images: Tensor) -> None:
        """As in the base; and where it reads clips, ValueError for others than these."""
        frames = self.config.frames
        if images.ndim != (4 if frames == 1 else 5) or frames > 1 and images.shape[2] != frames:
            given = f"{images.shape[2]} frames" if images.ndim == 5 else "images"
            wanted = "images" if frames == 1 else f"clips of {frames} frames"
            raise ValueError(f"this tokenizer reads {wanted}, not {given}")
        super().check_images(images if frames == 1 else images[:, :, 0])

    def features(self, images: Tensor, condition: Condition | None = None) -> Tensor:
        self.check_images(images)
        return self.encoder((images if images.ndim == 5 else images[:, :, None]) / 2 + 0.5)

    def render(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        clip = self.decoder(z) * 2 - 1
        return clip if self.config.frames > 1 else clip[:, :, 0]

    def apply_bottleneck(self, h: Tensor, given: TrainingInputs) -> tuple[Code, Tensor, dict[str, Tensor]]:
        code, z, terms = super().apply_bottleneck(h, given)
        if self.prior is not None:
            logits = self.prior_logits(code, given.draws)
            following = code.ids[:, 1:].flatten()
            losses = [F.cross_entropy(of_round.flatten(0, 1), following) for of_round in logits]
            terms = terms | {"prior": torch.stack(losses).mean()}
        return code, z, terms

    def prior_logits(self, code: Code, draws: Draws | None) -> list[Tensor]:
        """The prior's logits [B, N - 1, vocab] of each round, of a code at the bottleneck's own scale."""
        rows = self.neck.lookup(torch.arange(self.spec.vocab, device=code.z.device)).detach()
        config, step = self.config, 0 if draws is None else draws.step or 0
        share = min(1.0, step / config.prior_rise) * config.prior_share
        return self.prior.rounds(code.z, rows, draws, config.prior_rounds, share)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.pixels.weight

    def parts(self) -> dict[str, list[nn.Module]]:
        prior = [] if self.prior is None else [self.prior]
        return {"encoder": [self.encoder, self.neck, *prior], "decoder": [self.decoder]}


def patch_grid(arguments: Arguments) -> tuple[int, int]:
    """Rows and columns of patches; ValueError where a patch does not divide the sides."""
    with at("larp"):
        return divide(arguments.image_size, arguments.patch_size, f"patch_size {arguments.patch_size}")
