"""The transformer that predicts masked ids from those that are known, as MaskGIT and its descendants use it."""

import math
from typing import Literal

import torch
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it in the component's own module when loading
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from torch import Tensor, nn

from pipeline.code import Condition, stack_ids
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.networks.base import Network, check_ids, check_widths
from pipeline.nn.bidirectional import BlockShape, LongSkipBlock, PostNormBlock
from pipeline.nn.blocks import Attended, silence_captions
from pipeline.nn.dropout import apply_dropout
from pipeline.nn.embeddings import LabelEmbedding
from pipeline.nn.text import PARTS as TEXT
from pipeline.nn.text import Caption, TextNull, TextProjection, TextReading, join_caption
from pipeline.nn.tokens import HEAD_TABLES, Choose, TokenEmbedding, TokenHead
from pipeline.ranges import Count, Counts, Fraction, FractionBelowOne, Positive, Whole


class BidirectionalTransformer(Network, AttentionMixin, PeftAdapterMixin):
    """A class token and a code's tokens, some of them masked, through blocks without an order of reading.

    `bert` (MaskGIT, Chang et al., arXiv:2202.04200): post-norm blocks after a norm of the embeddings. `uvit` (U-ViT,
    Bao et al., arXiv:2209.12152): pre-norm blocks, the later half of which also read the outputs of the earlier half,
    the last stored first, and a norm at the end. Both as the generators of TiTok (bytedance/1d-tokenizer,
    arXiv:2406.07550), with BERT's token types left out.

    `grid`, `vocab`, `codebooks` and `num_classes` are derived; class `num_classes` is the null one, and the only one
    of an unconditional network (0). `depth` counts blocks: U-ViT-L has 21. A token's codebooks are masked together.
    Captions (`text_tokens`, ..., derived) are read as more tokens of the sequence, across by every block, or as a
    vector that joins the class token; see `pipeline.nn.text`.

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    role = "masked"
    parts = {
        "labels": ("label_embedding",),
        "text": TEXT,
        "positions": ("positions",),
        "codes": ("token_embedding", "head"),
    }
    code_tables = ("token_embedding.tables.*.weight", *HEAD_TABLES)
    _supports_gradient_checkpointing = True
    _no_split_modules = ["PostNormBlock", "LongSkipBlock"]
    _repeated_blocks = ["PostNormBlock", "LongSkipBlock"]
    _skip_layerwise_casting_patterns = ["embedding", "norm"]

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
        body: Literal["bert", "uvit"] = "bert",
        feed_forward_ratio: Positive = 4.0,
        dropout: FractionBelowOne = 0.1,
        attention_dropout: FractionBelowOne = 0.0,
        condition_drop: Fraction = 0.1,
        text_tokens: Whole = 0,
        text_dim: Whole = 0,
        text_layers: Count = 1,
        pooled_dim: Whole = 0,
        text_reading: TextReading = "context",
        text_projection: TextProjection = "linear",
        text_null: TextNull = "learned",
    ):
        super().__init__()
        self.validate(Arguments.from_config(self))
        self.gradient_checkpointing = False
        self.token_embedding = TokenEmbedding(vocab, codebooks, width, mask=True)
        self.label_embedding = LabelEmbedding(num_classes, width)
        self.positions = nn.Parameter(torch.empty(1 + math.prod(grid), width))  # the first is the class token's
        self.text = self.make_text_reader(width)
        sizes = (width, heads, round(width * feed_forward_ratio))
        shape = BlockShape(*sizes, dropout, attention_dropout, crossed=self.reads_across)
        self.half = depth // 2 if body == "uvit" else 0  # blocks that store, and as many at the end that take
        later = depth - self.half
        make = {"bert": lambda i: PostNormBlock(shape), "uvit": lambda i: LongSkipBlock(shape, skip=i >= later)}[body]
        self.blocks = nn.ModuleList(make(i) for i in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-12 if body == "bert" else 1e-5)
        self.head = TokenHead(vocab, codebooks, width, bias=True)
        self._initialise()

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        depth = arguments.depth
        check_widths(arguments)
        if arguments.body == "uvit" and depth % 2 == 0:
            raise ValueError(f"body=uvit has as many blocks before its middle one as after it; depth {depth} is even")

    def forward(
        self,
        ids: Tensor,
        masked: Tensor,
        condition: Condition | None = None,
        choose: Choose | None = None,
        dropout: Draws | None = None,
    ) -> Tensor:
        """ids [B, N, codebooks] int64, of which the network sees those of tokens that are not `masked` [B, N] bool.

        Returns logits [B, N, codebooks, vocab]. A masked token's ids reach nothing but its own logits, each codebook's
        those of the codebooks after it (see TokenHead): nothing with one codebook, teacher forcing with more. With
        `choose`, which is for sampling, returns ids [B, N, codebooks] in place of logits, chosen codebook by codebook,
        and what `ids` hold at masked positions does not matter. `dropout` gives the masks of dropout in training.
        Without a condition a network of classes predicts for its null class. Ids [B, N] will do for one codebook.

        Raises ValueError when an unconditional network is given labels, and when N is not the grid's.
        """
        ids = stack_ids(ids)
        caption = self.caption(condition, len(ids), ids.device)
        h = self._embed(ids.masked_fill(masked[..., None], self.config.vocab), condition, caption)
        h, _, attended = join_caption(h, None, caption)
        if self.config.body == "bert":
            h = self.norm(h)
        rate = self.config.dropout
        if dropout is not None and rate:
            h = apply_dropout(h, dropout.keep_mask("embedding", tuple(h.shape[1:]), rate), rate)
        stored = []
        for i in range(len(self.blocks)):
            taken = stored.pop() if stored and i >= len(self.blocks) - self.half else None
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                h = self._gradient_checkpointing_func(self._block, i, h, taken, attended, dropout)
            else:
                h = self._block(i, h, taken, attended, dropout)
            if i < self.half:
                stored.append(h)
        if self.config.body == "uvit":
            h = self.norm(h)
        h = h[:, 1 : 1 + ids.shape[1]]
        return self.head(h, ids) if choose is None else self.head.choose(h, choose)

    def _block(self, i: int, h: Tensor, stored: Tensor | None, attended: Attended, dropout: Draws | None) -> Tensor:
        """Block `i` with its dropout, whose masks a checkpointed pass draws again instead of storing them."""
        block = self.blocks[i]
        return block(h, stored, block.masks(dropout, h.shape[1], f"blocks.{i}"), attended)

    def _embed(self, ids: Tensor, condition: Condition | None, caption: Caption | None) -> Tensor:
        """The class token, with the caption's vector, then the code's, with their positions: [B, 1 + N, width]."""
        check_ids(ids, self.config.grid, self.config.codebooks)
        labels = self.labels(condition, len(ids), ids.device)
        vector = self.label_embedding(labels)
        vector = vector if caption is None or caption.vector is None else vector + caption.vector
        h = torch.cat([vector[:, None], self.token_embedding(ids)], dim=1)
        return h + self.positions

    def _initialise(self) -> None:
        """Every matrix and table from N(0, 0.02^2), cut at 2, as BERT and U-ViT are; biases at zero."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.positions, std=0.02)
        silence_captions(self)
