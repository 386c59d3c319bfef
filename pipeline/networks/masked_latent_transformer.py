"""The transformer of masked continuous tokens whose encoder sees the known ones alone, as MAR uses it."""

import math
from typing import Literal

import torch
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it in the component's own module when loading
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.networks.base import MaskedLatentNetwork, check_axes, check_widths
from pipeline.nn.bidirectional import BlockShape, NormFirstBlock
from pipeline.nn.blocks import EPSILON
from pipeline.nn.conditions import refuse_text
from pipeline.nn.embeddings import LabelEmbedding
from pipeline.nn.modulated import check_patches
from pipeline.nn.token_denoiser import TokenDenoiser
from pipeline.nn.tokens import put_places, take_places
from pipeline.nn.transformer_sizes import both_sizes
from pipeline.ranges import Count, Counts, Fraction, FractionBelowOne, Positive, Whole


class MaskedLatentTransformer(MaskedLatentNetwork, AttentionMixin, PeftAdapterMixin):
    """MAR (Li et al., arXiv:2406.11838), of the shape of MAE (He et al., arXiv:2111.06377).

    `buffer` places that hold the class, each with a position of its own, and the known tokens go through an encoder of
    `depth` blocks. A decoder reads its states, with a mask token at every place that is not known, and its states, with
    further positions, are what the head of `head_depth` blocks denoises tokens by. `decoder_depth`, `decoder_width` and
    `decoder_heads` are the encoder's unless given. Dropout is of attention weights, and of both branches of a block
    with the hidden channels.

    `grid`, `dim`, `num_classes` (0: unconditional) and `outputs` are derived; class `num_classes` is the null one.
    Patches of a code are its tokens. The head's sinusoid sees u * time_scale, as that of `diffusion_transformer`.

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    parts = {
        "labels": ("label_embedding",),
        "positions": ("encoder_positions", "decoder_positions", "state_positions"),
        "codes": ("token_embedding", "head.embedding", "head.output.linear"),
    }
    _supports_gradient_checkpointing = True
    _no_split_modules = ["NormFirstBlock", "ModulatedMLPBlock"]
    _repeated_blocks = ["NormFirstBlock", "ModulatedMLPBlock"]
    _skip_layerwise_casting_patterns = ["embedding", "norm", "modulation"]

    @register_to_config
    def __init__(
        self,
        grid: Counts,
        dim: Count,
        num_classes: Whole,
        depth: Count,
        width: Count,
        heads: Count,
        outputs: Count = 1,
        decoder_depth: Count | None = None,
        decoder_width: Count | None = None,
        decoder_heads: Count | None = None,
        patch_size: Count = 1,
        buffer: Count = 64,
        feed_forward_ratio: Positive = 4.0,
        dropout: FractionBelowOne = 0.1,
        attention_dropout: FractionBelowOne = 0.1,
        head_depth: Count = 3,
        head_width: Count = 1024,
        condition_drop: Fraction = 0.1,
        time_scale: Positive = 1000.0,
        time_direction: Literal["noise", "data"] = "noise",
    ):
        super().__init__()
        self.validate(Arguments.from_config(self))
        self.gradient_checkpointing = False
        (_, _, _), (decoder_width, decoder_depth, decoder_heads) = both_sizes(Arguments.from_config(self))
        channels, tokens = patch_size ** len(grid) * dim, math.prod(self.patch_grid(self.config))
        drops = (dropout, attention_dropout, dropout)
        self.token_embedding = nn.Linear(channels, width)
        self.label_embedding = LabelEmbedding(num_classes, width)
        self.encoder_positions = nn.Parameter(torch.empty(buffer + tokens, width))  # those of the buffer come first
        self.norm_in = nn.LayerNorm(width, eps=EPSILON)
        encoder = BlockShape(width, heads, int(width * feed_forward_ratio), *drops)
        self.encoder_blocks = nn.ModuleList(NormFirstBlock(encoder) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(width, eps=EPSILON)
        self.decoder_embedding = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(decoder_width))
        self.decoder_positions = nn.Parameter(torch.empty(buffer + tokens, decoder_width))
        decoder = BlockShape(decoder_width, decoder_heads, int(decoder_width * feed_forward_ratio), *drops)
        self.decoder_blocks = nn.ModuleList(NormFirstBlock(decoder) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=EPSILON)
        self.state_positions = nn.Parameter(torch.empty(tokens, decoder_width))
        self.head = TokenDenoiser(channels, outputs * channels, decoder_width, head_width, head_depth)
        self._initialise()

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        check_widths(arguments)
        width, _, heads = both_sizes(arguments)[1]
        check_widths(arguments | {"decoder_width": width, "decoder_heads": heads}, "decoder_")
        check_axes("masked_latent_transformer", arguments.grid)
        check_patches(arguments.grid, arguments.patch_size)

    def states(
        self, tokens: Tensor, known: Tensor, condition: Condition | None = None, dropout: Draws | None = None
    ) -> Tensor:
        self.check_tokens(tokens)
        refuse_text(condition)
        buffer = self.config.buffer
        seen = self._encode(tokens, known, condition, dropout)
        h = self.mask_token.expand(*tokens.shape[:2], -1).to(seen.dtype)
        h = torch.cat([seen[:, :buffer], put_places(h, seen[:, buffer:], known)], dim=1)
        h = self._run("decoder_blocks", h + self.decoder_positions, dropout)
        return self.decoder_norm(h)[:, buffer:] + self.state_positions

    def _encode(self, tokens: Tensor, known: Tensor, condition: Condition | None, dropout: Draws | None) -> Tensor:
        """What the decoder reads of the buffer and of the known tokens, [B, buffer + K, decoder width]."""
        buffer, labels = self.config.buffer, self.labels(condition, len(tokens), tokens.device)
        first = self.label_embedding(labels)[:, None] + self.encoder_positions[:buffer]
        rest = self.token_embedding(tokens) + self.encoder_positions[buffer:]
        h = self.norm_in(torch.cat([first, take_places(rest, known)], dim=1))
        h = self._run("encoder_blocks", h, dropout)
        return self.decoder_embedding(self.encoder_norm(h))

    def _run(self, name: str, h: Tensor, dropout: Draws | None) -> Tensor:
        """h [B, N, width] after all blocks of this name."""
        for i in range(len(getattr(self, name))):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                h = self._gradient_checkpointing_func(self._block, name, i, h, dropout)
            else:
                h = self._block(name, i, h, dropout)
        return h

    def _block(self, name: str, i: int, h: Tensor, dropout: Draws | None) -> Tensor:
        """One block with its dropout, whose masks a checkpointed pass draws again instead of storing them."""
        block = getattr(self, name)[i]
        return block(h, block.masks(dropout, h.shape[1], f"{name}.{i}"))

    @torch.no_grad()
    def _initialise(self) -> None:
        """As published: Xavier linear layers, everything that is learned beside them from N(0, 0.02^2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        learned = (self.encoder_positions, self.decoder_positions, self.state_positions, self.mask_token)
        for weight in (self.label_embedding.weight, *learned):
            nn.init.normal_(weight, std=0.02)
        self.head.initialise()
