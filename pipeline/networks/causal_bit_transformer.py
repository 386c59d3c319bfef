"""The transformer that predicts the bits of one token after another, and reads a language model layer by layer."""

import math
from dataclasses import dataclass

import torch
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it in the component's own module when loading
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from torch import Tensor, nn

from pipeline.code import Condition, stack_ids
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.networks.base import Network, check_widths
from pipeline.nn.bits import BitHead, check_bits, ids_to_bits
from pipeline.nn.blocks import RMSNorm
from pipeline.nn.causal import Cache
from pipeline.nn.embeddings import LabelEmbedding
from pipeline.nn.text import TextNull
from pipeline.nn.text_keys import EPSILON, KeyShape, TextKeyBlock, TextKeys, make_layered_text, visible
from pipeline.nn.token_sampling import RowSampling, TokenMemory, check_no_order
from pipeline.nn.tokens import Choose
from pipeline.ranges import Count, Counts, Fraction, FractionBelowOne, Whole


@dataclass
class Memory(TokenMemory):
    """What the network keeps between the tokens of one sampling; made by `CausalBitTransformer.begin`."""

    text: TextKeys | None = None

    def narrow(self, rows: int) -> None:
        super().narrow(rows)
        self.text = None if self.text is None else self.text.narrow(rows)


class CausalBitTransformer(RowSampling, Network, AttentionMixin, PeftAdapterMixin):
    """The bits of each token from those of the tokens before it, all of them at once: Instella-T2I (arXiv:2506.21022).

    Ids of 2^b values are b bits each. A start vector of the class precedes the tokens. In every block the tokens attend
    to one layer of the caption's features, projected by the block, and to the tokens up to their own; to each its
    learned position in that block is added. With as many layers of the text encoder as blocks, block i reads layer i.
    `grid`, `vocab`, `codebooks`, `num_classes` and the sizes of captions are derived; class `num_classes` is the
    null one, and all there is without classes. `residual_dropout` is of what each branch adds.

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    role = "causal"
    parts = {
        "labels": ("class_embedding",),
        "text": ("text", "blocks.*.text_projection"),
        "positions": ("blocks.*.positions",),
        "codes": ("bit_embedding", "head"),
    }
    memory_class = Memory
    _supports_gradient_checkpointing = True
    _no_split_modules = ["TextKeyBlock"]
    _repeated_blocks = ["TextKeyBlock"]
    _skip_layerwise_casting_patterns = ["embedding", "norm", "positions"]

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
        self.tokens = math.prod(grid)
        self.capacity = text_tokens + self.tokens  # with the start, and the last token is never read
        self.class_embedding = LabelEmbedding(num_classes, width)
        self.head = BitHead(vocab, codebooks, width)
        self.bit_embedding = nn.Linear(self.head.linear.out_features, width)
        shape = KeyShape(width, heads, text_dim if text_tokens else 0, 1 + self.tokens, residual_dropout)
        self.text = make_layered_text(self.config)
        self.blocks = nn.ModuleList(TextKeyBlock(shape) for _ in range(depth))
        self.last_norm = RMSNorm(width, EPSILON)
        self._initialise()

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        check_widths(arguments | {"feed_forward_ratio": 4.0})
        check_bits(arguments.vocab)

    def forward(
        self,
        ids: Tensor | None,
        condition: Condition | None = None,
        order: None = None,
        dropout: Draws | None = None,
        *,
        memory: Memory | None = None,
        choose: Choose | None = None,
    ) -> Tensor:
        """Logits [B, N, codebooks, vocab] of ids [B, N] or [B, N, codebooks], each given those before it, row by row.

        Without a condition a network of classes predicts for its null class. `dropout` is where its masks come from;
        None leaves everything. `memory` and `choose` are for `advance`.

        Raises ValueError when an unconditional network is given labels, when N is not the grid's, and for an `order`.
        """
        if memory is not None:
            return self.head.choose(self._next(ids, memory), choose)[:, 0]
        check_no_order(order)
        ids = stack_ids(ids)
        if ids.shape[1] != self.tokens:
            raise ValueError(
                f"a code of {ids.shape[1]} tokens does not fit the network's grid {list(self.config.grid)}"
            )
        return self.head(self.states(ids[:, :-1], condition, dropout))

    def states(self, ids: Tensor, condition: Condition | None = None, dropout: Draws | None = None) -> Tensor:
        """States [B, n + 1, width] after the first 0, 1, ..., n of ids [B, n, codebooks]; the head reads them."""
        start = self._start(condition, len(ids), ids.device)
        h = torch.cat([start, self._embed(ids)], dim=1)
        return self._run(h, slice(0, h.shape[1]), self.caption(condition, len(ids), ids.device), dropout)

    def _next(self, ids: Tensor | None, memory: Memory) -> Tensor:
        """The state [B, 1, width] that the next token is chosen from, after the memory has read the last one."""
        if ids is None:
            memory.text = self.caption(memory.condition, memory.batch, memory.device)
            h = self._start(memory.condition, memory.batch, memory.device)
        else:
            h = self._embed(ids[:, None])
        return self._run(h, memory.step(1), memory.text, caches=memory.caches)

    def _run(
        self,
        h: Tensor,
        span: slice,
        text: TextKeys | None,
        dropout: Draws | None = None,
        caches: list[Cache] | None = None,
    ) -> Tensor:
        """Tokens [B, n, width], which are `span` of the sequence, through the blocks and the last norm.

        Captions join the keys of the first span, and are in the caches of the others.
        """
        seen = visible(span, None if text is None else text.mask, causal=True, device=h.device)
        for i in range(len(self.blocks)):
            layer = text.layers[i] if text is not None and not span.start else None
            others = (layer, seen, span, None if caches is None else caches[i])
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                h = self._gradient_checkpointing_func(self._block, i, h, others, dropout)
            else:
                h = self._block(i, h, others, dropout)
        return self.last_norm(h)

    def _block(self, i: int, h: Tensor, others: tuple, dropout: Draws | None) -> Tensor:
        """Block `i` with its dropout, whose masks a checkpointed pass draws again instead of storing them."""
        return self.blocks[i](h, *others, self.blocks[i].masks(dropout, h.shape[1], f"blocks.{i}"))

    def _start(self, condition: Condition | None, batch: int, device: torch.device) -> Tensor:
        """What precedes the tokens, [B, 1, width]."""
        return self.class_embedding(self.labels(condition, batch, device))[:, None]

    def _embed(self, ids: Tensor) -> Tensor:
        """Ids [B, n, codebooks] to [B, n, width]."""
        return self.bit_embedding(ids_to_bits(ids, self.config.vocab).to(self.bit_embedding.weight.dtype))

    def _initialise(self) -> None:
        """Normal weights, and a head at zero, by which every bit is as likely as not."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            nn.init.normal_(block.positions, std=0.02)
        nn.init.zeros_(self.head.linear.weight)
