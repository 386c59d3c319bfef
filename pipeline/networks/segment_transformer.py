"""The causal transformer of codes in segments, each with tables of its own: Hita's generator."""

from typing import Literal

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
from pipeline.nn.causal import BlockShape, Cache, hidden_width, learned_norm
from pipeline.nn.conditions import refuse_text
from pipeline.nn.dropout import apply_dropout
from pipeline.nn.embeddings import LabelEmbedding, register_table, resample_positions, rotary_tables
from pipeline.nn.offset_attention import OffsetBlock, Offsets
from pipeline.nn.token_sampling import RowSampling, TokenMemory, check_no_order
from pipeline.nn.tokens import Choose, TokenEmbedding, TokenHead
from pipeline.ranges import Count, Counts, Fraction, FractionBelowOne, Positive, Whole


class SegmentTransformer(RowSampling, Network, AttentionMixin, PeftAdapterMixin):
    """Ids of a code of segments, each predicted from the class and the ids before it, row by row.

    Hita (Zheng et al., arXiv:2507.02358), in the form of its public implementation: LlamaGen's blocks, an embedding
    table and a head for each segment. To queries and keys of the places of the class and of all tokens before the last
    segment, but for the last of these, learned vectors are added, the same in every layer; those of the last segment
    are turned by rotary positions on its grid. `grid`, `segments`, `vocab`, `codebooks` and `num_classes` (0:
    unconditional) are derived; class `num_classes` is the null one.

    Args:
        prefix_rotary: what rotary positions do to the last token before the last segment: leave it as it is, or set
            its query and key to zero, as the public implementation does, whose table begins with zeros.
        border: the table by which sampling embeds the last token of a segment: its `own`, as training does, or that
            of the `next` segment, as the public implementation samples.
        feed_forward_ratio, feed_forward_multiple, dropouts and zero_head: as of `causal_transformer`.

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    role = "causal"
    parts = {"labels": ("class_embedding",), "positions": ("positions",), "codes": ("embeddings", "outputs")}
    code_tables = (
        *("embeddings.*.tables.*.weight", "outputs.*.outputs.*.weight"),
        *("outputs.*.outputs.*.bias", "outputs.*.told.*.table.weight"),
    )
    _supports_gradient_checkpointing = True
    _no_split_modules = ["OffsetBlock"]
    _repeated_blocks = ["OffsetBlock"]
    _skip_layerwise_casting_patterns = ["embedding", "norm", "positions"]

    @register_to_config
    def __init__(
        self,
        grid: Counts,
        segments: list[Counts],
        vocab: Count,
        num_classes: Whole,
        depth: Count,
        width: Count,
        heads: Count,
        codebooks: Count = 1,
        prefix_rotary: Literal["none", "zero"] = "none",
        border: Literal["own", "next"] = "own",
        norm_epsilon: Positive = 1e-5,
        feed_forward_ratio: Positive = 4.0,
        feed_forward_multiple: Count = 1,
        condition_drop: Fraction = 0.1,
        token_dropout: FractionBelowOne = 0.0,
        residual_dropout: FractionBelowOne = 0.0,
        feed_forward_dropout: FractionBelowOne = 0.0,
        zero_head: bool = True,
    ):
        super().__init__()
        self.validate(Arguments.from_config(self))
        self.gradient_checkpointing = False
        self.counts = [torch.Size(each).numel() for each in segments]
        self.tokens, self.before = sum(self.counts), sum(self.counts[:-1])
        self.capacity = self.tokens  # the class's place, and the last token is never read
        self.class_embedding = LabelEmbedding(num_classes, width)
        self.embeddings = nn.ModuleList(TokenEmbedding(vocab, codebooks, width) for _ in segments)
        self.positions = nn.Parameter(torch.zeros(self.before, width))  # row 0 is the class's
        cosines, sines = rotary_tables(segments[-1], width // heads)
        first = torch.ones(self.before + 1, width // heads, device="cpu")
        first[-1] = float(prefix_rotary == "none")
        register_table(self, "cosines", torch.cat([first, cosines]))  # [1 + N, D]
        register_table(self, "sines", torch.cat([torch.zeros_like(first), sines]))
        hidden = hidden_width(width, "swiglu", feed_forward_ratio, feed_forward_multiple)
        sizes = (width, heads, "rms", norm_epsilon, "swiglu", hidden, False, False)
        shape = BlockShape(*sizes, residual_dropout, feed_forward_dropout, 0.0)
        self.blocks = nn.ModuleList(OffsetBlock(shape) for _ in range(depth))
        self.last_norm = learned_norm("rms", width, norm_epsilon)
        self.outputs = nn.ModuleList(TokenHead(vocab, codebooks, width) for _ in segments)
        self._initialise()

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        check_widths(arguments)
        segments, width, heads = (arguments[name] for name in ("segments", "width", "heads"))
        if len(segments) < 2:
            raise ValueError(
                "segment_transformer predicts the ids of segments with codebooks of their own, and this code has none;"
                " take the tokenizer hita, or the network causal_transformer"
            )
        multiple = 2 * len(segments[-1])
        if width // heads % multiple:
            raise ValueError(f"rotary positions need width / heads divisible by {multiple}, not {width // heads}")

    def forward(
        self,
        ids: Tensor | None,
        condition: Condition | None = None,
        order: None = None,
        dropout: Draws | None = None,
        *,
        memory: TokenMemory | None = None,
        choose: Choose | None = None,
    ) -> Tensor:
        """Logits [B, N, codebooks, vocab] of ids [B, N] or [B, N, codebooks], each given those before it, row by row.

        Without a condition a network of classes predicts for its null class. `dropout` is where its masks come from;
        None leaves everything. `memory` and `choose` are for `advance`.

        Raises ValueError when an unconditional network is given labels, when N is not the grid's, and for an `order`.
        """
        if memory is not None:
            state = self._next(ids, memory)
            return self.outputs[self.segment_of(memory.length - 1)].choose(state, choose)[:, 0]
        check_no_order(order)
        ids = stack_ids(ids)
        if ids.shape[1] != self.tokens:
            raise ValueError(f"a code of {ids.shape[1]} tokens does not fit the network's {self.tokens}")
        parts = zip(self.outputs, *(t.split(self.counts, dim=1) for t in (self.states(ids, condition, dropout), ids)))
        return torch.cat([head(h, of_part) for head, h, of_part in parts], dim=1)

    def states(self, ids: Tensor, condition: Condition | None = None, dropout: Draws | None = None) -> Tensor:
        """States [B, N, width] that ids [B, N, codebooks] are predicted from."""
        tokens = zip(self.embeddings, ids.split(self.counts, dim=1))
        embedded = torch.cat([embed(part) for embed, part in tokens], dim=1)[:, :-1]
        h = torch.cat([self._start(condition, len(ids), ids.device), embedded], dim=1)
        return self._run(h, slice(0, self.tokens), dropout)

    def segment_of(self, token: int) -> int:
        """The number of the segment that a token of the row is in."""
        return next(i for i in range(len(self.counts)) if token < sum(self.counts[: i + 1]))

    def resample(self, name: str, weight: Tensor, other: "SegmentTransformer") -> Tensor:
        return resample_positions(weight, [other.before], [self.before])

    def _next(self, ids: Tensor | None, memory: TokenMemory) -> Tensor:
        """The state [B, 1, width] that the next token is chosen from, after the memory has read the last one."""
        place = memory.length
        if ids is None:
            h = self._start(memory.condition, memory.batch, memory.device)
        else:
            h = self.embeddings[self.segment_of(place - (self.config.border == "own"))](ids[:, None])
        return self._run(h, memory.step(1), caches=memory.caches)

    def _start(self, condition: Condition | None, batch: int, device: torch.device) -> Tensor:
        """What precedes the tokens, [B, 1, width]."""
        refuse_text(condition)
        return self.class_embedding(self.labels(condition, batch, device))[:, None]

    def _run(self, h: Tensor, span: slice, dropout: Draws | None = None, caches: list[Cache] | None = None) -> Tensor:
        """Embedded places [B, n, width], which are `span` of the row, through the blocks and the last norm."""
        h = self._drop_tokens(h, dropout)
        added = F.pad(self.positions, (0, 0, 0, self.tokens - self.before))
        offsets = tuple(table[span] for table in (self.cosines, self.sines, added))
        for i in range(len(self.blocks)):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                h = self._gradient_checkpointing_func(self._block, i, h, offsets, dropout)
            else:
                h = self._block(i, h, offsets, dropout, caches)
        return self.last_norm(h)

    def _block(
        self, i: int, h: Tensor, offsets: Offsets, dropout: Draws | None, caches: list[Cache] | None = None
    ) -> Tensor:
        """Block `i` with its dropout, whose masks a checkpointed pass draws again instead of storing them."""
        block, cache = self.blocks[i], None if caches is None else caches[i]
        return block(h, offsets, block.masks(dropout, h.shape[1], f"blocks.{i}"), cache)

    def _drop_tokens(self, h: Tensor, dropout: Draws | None) -> Tensor:
        rate = self.config.token_dropout
        if dropout is None or not rate:
            return h
        return apply_dropout(h, dropout.keep_mask("tokens", tuple(h.shape[1:]), rate), rate)

    def _initialise(self) -> None:
        """As LlamaGen: normal weights, and with `zero_head` heads at zero."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        if self.config.zero_head:
            for head in self.outputs:
                for layer in head.outputs:
                    nn.init.zeros_(layer.weight)
