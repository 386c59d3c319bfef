"""The transformer that tells which bits of a noisy code are wrong, and reads a language model layer by layer."""

import math

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it in the component's own module when loading
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from torch import Tensor, nn

from pipeline.code import Condition, stack_ids
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.networks.base import Network, check_widths
from pipeline.nn.bits import bits_of, ids_to_bits
from pipeline.nn.blocks import ModulatedHead
from pipeline.nn.embeddings import LabelEmbedding
from pipeline.nn.modulated import check_count
from pipeline.nn.text import TextNull
from pipeline.nn.text_keys import KeyShape, ModulatedTextKeyBlock, TextKeys, make_layered_text, visible
from pipeline.ranges import Count, Counts, Fraction, FractionBelowOne, Whole


class LevelEmbedding(nn.Module):
    """Noise levels [B] to [B, width]: two linear layers of the number itself."""

    def __init__(self, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(1, width), nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        return self.down(F.silu(self.up(time[:, None].to(self.up.weight.dtype))))


class BitDiffusionTransformer(Network, AttentionMixin, PeftAdapterMixin):
    """Noisy bits to the logits that each of them is wrong: the diffusion network of Instella-T2I (arXiv:2506.21022).

    Ids of 2^b values are b bits each. Blocks are modulated by noise level and class. In every block the tokens attend
    to one layer of the caption's features, projected by the block, and to each other; to each its learned position in
    that block is added. With as many layers of the text encoder as blocks, block i reads layer i. `grid`, `vocab`,
    `codebooks`, `num_classes` (0: none) and the sizes of captions are derived; class `num_classes` is the null
    one. `residual_dropout` is of what each branch adds.

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    role = "bit_denoiser"
    parts = {
        "labels": ("label_embedding",),
        "text": ("text", "blocks.*.text_projection"),
        "positions": ("blocks.*.positions",),
        "codes": ("bit_embedding", "head.linear"),
    }
    _supports_gradient_checkpointing = True
    _no_split_modules = ["ModulatedTextKeyBlock"]
    _repeated_blocks = ["ModulatedTextKeyBlock"]
    _skip_layerwise_casting_patterns = ["embedding", "norm", "modulation", "positions"]

    @register_to_config
    def __init__(
        self,
        grid: Counts,
        vocab: Count,
        num_classes: Whole,
        depth: Count,
        width: Count,
        heads: Count,
        codebooks: Count = 1,
        condition_drop: Fraction = 0.1,
        residual_dropout: FractionBelowOne = 0.0,
        text_tokens: Whole = 0,
        text_dim: Whole = 0,
        text_layers: Count = 1,
        text_null: TextNull = "learned",
    ):
        super().__init__()
        self.validate(Arguments.from_config(self))
        self.gradient_checkpointing = False
        bits, places = codebooks * bits_of(vocab), math.prod(grid)
        self.bit_embedding = nn.Linear(bits, width)
        self.time_embedding = LevelEmbedding(width)
        self.label_embedding = LabelEmbedding(num_classes, width) if num_classes else None
        shape = KeyShape(width, heads, text_dim if text_tokens else 0, places, residual_dropout)
        self.text = make_layered_text(self.config)
        self.blocks = nn.ModuleList(ModulatedTextKeyBlock(shape) for _ in range(depth))
        self.head = ModulatedHead(width, bits, "layer")
        self._initialise()

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        check_widths(arguments | {"feed_forward_ratio": 4.0})
        bits_of(arguments.vocab)

    def forward(
        self, ids: Tensor, time: Tensor, condition: Condition | None = None, dropout: Draws | None = None
    ) -> Tensor:
        """Logits [B, N, bits] that the bits of ids [B, N] or [B, N, codebooks], at noise levels `time` [B], are wrong.

        The bits of a token are those of its ids in their order, see `pipeline.nn.bits`. Without a condition a network
        of classes answers for its null class. `dropout` is where its masks come from; None leaves everything.

        Raises ValueError when an unconditional network is given labels, and when N is not the grid's.
        """
        ids = stack_ids(ids)
        check_count(ids, self.config.grid)
        bits = ids_to_bits(ids, self.config.vocab).to(self.bit_embedding.weight.dtype)
        h, c = self.bit_embedding(bits), F.silu(self._request(time, condition))
        text = self.caption(condition, len(ids), ids.device)
        span = slice(0, h.shape[1])
        seen = visible(span, None if text is None else text.mask, causal=False, device=h.device)
        for i in range(len(self.blocks)):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                h = self._gradient_checkpointing_func(self._block, i, h, c, text, seen, dropout)
            else:
                h = self._block(i, h, c, text, seen, dropout)
        return self.head(h, c)

    def _block(
        self, i: int, h: Tensor, c: Tensor, text: TextKeys | None, seen: Tensor | None, dropout: Draws | None
    ) -> Tensor:
        """Block `i` with its dropout, whose masks a checkpointed pass draws again instead of storing them."""
        layer, kept = None if text is None else text.layers[i], self.blocks[i].masks(dropout, h.shape[1], f"blocks.{i}")
        return self.blocks[i](h, c, layer, seen, kept)

    def _request(self, time: Tensor, condition: Condition | None) -> Tensor:
        """The condition of every block, [B, width]: the level's vector plus the class's."""
        vector = self.time_embedding(time)
        labels = self.labels(condition, len(time), time.device)
        return vector if self.label_embedding is None else vector + self.label_embedding(labels)

    def _initialise(self) -> None:
        """adaLN-Zero: Xavier linear layers, normal tables, gates and the last layer at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        tables = [] if self.label_embedding is None else [self.label_embedding.weight]
        for table in [*tables, *(block.positions for block in self.blocks)]:
            nn.init.normal_(table, std=0.02)
        for layer in [*(block.modulation for block in self.blocks), self.head.modulation, self.head.linear]:
            nn.init.zeros_(layer.weight)
