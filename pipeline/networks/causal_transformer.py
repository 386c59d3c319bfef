"""The transformer that predicts ids one after another, as LlamaGen, RAR and FAR do, by its switches."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it in the component's own module when loading
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.networks.base import Network, check_axes, check_widths
from pipeline.nn.blocks import Attended, Norm, Rotary, silence_captions
from pipeline.nn.causal import (
    BlockShape,
    Cache,
    CausalBlock,
    FeedForward,
    ModulatedCausalBlock,
    ModulatedNorm,
    PostNormCausalBlock,
    hidden_width,
)
from pipeline.nn.causal_sequence import Asked, Memory, SequencePositions, align_right
from pipeline.nn.dropout import apply_dropout
from pipeline.nn.embeddings import LabelEmbedding, register_table, rotary_tables
from pipeline.nn.sub_tokens import PredictsIds, check_head
from pipeline.nn.text import PARTS as TEXT
from pipeline.nn.text import TextNull, TextProjection, TextReading
from pipeline.nn.token_sampling import TokenSampling
from pipeline.nn.tokens import HEAD_TABLES, Choose
from pipeline.ranges import Count, Counts, Fraction, FractionBelowOne, Positive, Whole

Position = Literal["rotary", "rotary_sequence", "learned"]


class CausalTransformer(TokenSampling, Network, PredictsIds, AttentionMixin, PeftAdapterMixin):
    """Ids of a code, each predicted from the class and the ids before it.

    LlamaGen (Sun et al., arXiv:2406.06525): the defaults. RAR (Yu et al., arXiv:2411.00776): learned positions, a start
    token before the class, blocks modulated by class and position, and target positions: to each input the position of
    the token that it predicts is added, so that tokens may come in any order. `grid`, `vocab`, `codebooks` and
    `num_classes` (0: unconditional) are derived; class `num_classes` is the null one, and all there is without classes.
    Derived too: `position_grid`, on which rotary positions are counted, and `ends`: the last id is the end of a row.

    Captions (`text_tokens`, ..., derived) are read as a prefix without positions, before all else (`context`), across
    by every block, or as a vector that joins the class (see `pipeline.nn.text`), as a pooled one does always. With a
    prefix of text, without classes and pooled vectors, the first id is predicted from the caption's last place, as in
    LlamaGen. The prefix begins with the padded places, wherever the features have them, and they are not seen.

    Args:
        position: `rotary` along the axes of the grid, `rotary_sequence` along the row, or a learned vector per place.
        prefix_rotary: what rotary positions do to the prefix: leave it as it is, or set its queries and keys to zero,
            as LlamaGen's table does and its released weights need.
        feed_forward_ratio: the hidden width over the width; SwiGLU takes two thirds of it, since it has three matrices.
        feed_forward_multiple: the hidden width is rounded up to a multiple of it.
        token_dropout: of the embedded sequence. residual_dropout: of what each branch adds. feed_forward_dropout: of
            the activations inside the feed-forward layer. attention_dropout: of the attention weights, as in RAR.
        head_depth: blocks of a transformer over the ids of one token, which emits them one after another, as FAR does
            (arXiv:2411.16681); it reads the states before the last norm, and tokens are then embedded as their ids'
            rows side by side. With 0 an id is told to the next one by a small net, and rows are added up.
        zero_head: begin with the head at zero, so that every id is as likely, as LlamaGen does; else as all layers.
        post_norm: norms after the residual sums and none at the end, as in DiGIT (Zhu et al., arXiv:2410.12490).
        special_ids: rows of the head beyond the codebook's, as DiGIT's released weights have; never chosen.

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    role = "causal"
    parts = {
        "labels": ("class_embedding",),
        "text": TEXT,
        "positions": ("positions", "targets", "steps"),
        "codes": ("token_embedding", "head"),
    }
    reads_mixtures = True
    code_tables = ("token_embedding.tables.*.weight", *HEAD_TABLES)
    entry_points = ("states",)
    _supports_gradient_checkpointing = True
    _no_split_modules = ["CausalBlock", "PostNormCausalBlock", "ModulatedCausalBlock"]
    _repeated_blocks = ["CausalBlock", "PostNormCausalBlock", "ModulatedCausalBlock"]
    _skip_layerwise_casting_patterns = ["embedding", "norm", "modulation", "positions", "targets", "steps", "start"]

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
        position: Position = "rotary",
        prefix_rotary: Literal["none", "zero"] = "none",
        start_token: bool = False,
        target_positions: bool = False,
        modulated: bool = False,
        norm: Norm = "rms",
        norm_epsilon: Positive = 1e-5,
        query_key_norm: bool = False,
        feed_forward: FeedForward = "swiglu",
        feed_forward_ratio: Positive = 4.0,
        feed_forward_multiple: Count = 1,
        bias: bool = False,
        condition_drop: Fraction = 0.1,
        token_dropout: FractionBelowOne = 0.0,
        residual_dropout: FractionBelowOne = 0.0,
        feed_forward_dropout: FractionBelowOne = 0.0,
        attention_dropout: FractionBelowOne = 0.0,
        head_depth: Whole = 0,
        zero_head: bool = True,
        post_norm: bool = False,
        special_ids: Whole = 0,
        ends: bool = False,
        position_grid: Counts | None = None,
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
        self._build()
        self._initialise()

    def _build(self) -> None:
        """All modules and parameters, by the constructor's arguments."""
        c = self.config
        width = c.width
        self.text = self.make_text_reader(width)
        self.context = c.text_tokens if c.text_reading == "context" else 0  # places of a caption before the prefix
        has_class = bool(c.num_classes or c.pooled_dim or not self.context)
        self.tokens, self.prefix = math.prod(c.grid), c.start_token + has_class
        self.class_embedding = LabelEmbedding(c.num_classes, width) if has_class else None
        self.token_embedding = self.make_token_embedding()
        self._register_positions(c.position_grid)
        self.start = nn.Parameter(torch.zeros(width)) if c.start_token else None
        self.targets = nn.Parameter(torch.zeros(self.tokens, width)) if c.target_positions else None
        self.steps = nn.Parameter(torch.zeros(self.prefix + self.tokens, width)) if c.modulated else None  # for adaLN
        hidden = hidden_width(width, c.feed_forward, c.feed_forward_ratio, c.feed_forward_multiple)
        sizes = (width, c.heads, c.norm, c.norm_epsilon, c.feed_forward, hidden, c.bias, c.query_key_norm)
        dropouts = c.residual_dropout, c.feed_forward_dropout, c.attention_dropout
        shape = BlockShape(*sizes, *dropouts, self.reads_across)
        make = PostNormCausalBlock if c.post_norm else ModulatedCausalBlock if c.modulated else CausalBlock
        self.blocks = nn.ModuleList(make(shape) for _ in range(c.depth))
        self.last_norm, self.head = self.make_last_norm(), self.make_head(shape)

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        grid, position, width, heads = (arguments[name] for name in ("grid", "position", "width", "heads"))
        check_widths(arguments)
        check_axes("causal_transformer", grid)
        check_head(arguments)
        if arguments.post_norm and arguments.modulated:
            raise ValueError("post_norm: modulated blocks have their norms before the branches; set one to false")
        multiple = 2 * len(grid) if position == "rotary" else 2
        if "rotary" in position and width // heads % multiple:
            raise ValueError(f"position={position} needs width / heads divisible by {multiple}, not {width // heads}")

    def forward(
        self,
        ids: Tensor | None,
        condition: Condition | None = None,
        order: Tensor | None = None,
        dropout: Draws | None = None,
        memory: Memory | None = None,
        choose: Choose | None = None,
    ) -> Tensor:
        """Logits [B, N, codebooks, vocab] of ids [B, N] or [B, N, codebooks], each given those before it.

        Ids are in the order in which they are generated, and so are the logits: entry j is about ids[:, j], whatever
        its position. `order` [B, N] int64 is the position on the grid, counted row by row, of ids[:, j]; None is row by
        row. Without a condition a network of classes predicts for its null class. `dropout` is where its masks come
        from; None leaves everything. `memory` and `choose` are for `advance`.

        Raises ValueError when an unconditional network is given labels, and when N is not the grid's.
        """
        if memory is not None:
            return self.choose_ids(self._next(ids, memory), choose)[:, 0]
        ids = ids[..., None] if ids.ndim == 2 else ids
        if ids.shape[1] != self.tokens:
            raise ValueError(f"a code of {ids.shape[1]} tokens does not fit the network's grid {[*self.config.grid]}")
        return self.predict_ids(self.states(ids[:, :-1], condition, order, dropout), ids, dropout)

    def states(
        self,
        ids: Tensor,
        condition: Condition | None = None,
        order: Tensor | None = None,
        dropout: Draws | None = None,
    ) -> Tensor:
        """States [B, n + 1, width] after the first 0, 1, ..., n of ids [B, n, codebooks]; the head reads them."""
        asked, positions = self._ask(condition, len(ids), ids.device), self._sequence_positions(order, ids.device)
        h = torch.cat([*self._prefix(asked), self.token_embedding(ids)], dim=1)
        return self._run(h, slice(0, h.shape[1]), asked, positions, dropout)[:, self.before - 1 :]

    def begin(
        self,
        batch: int,
        condition: Condition | None = None,
        order: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Memory:
        """The memory of a new sampling of `batch` images, for `advance`; see `forward` on condition and order.

        `device` is where the network runs: where its weights are, unless they are offloaded between evaluations.
        """
        capacity = self.before + self.tokens - 1  # the last token is never an input
        device = device or self.token_embedding.tables[0].weight.device
        return Memory(batch, condition, [Cache(capacity) for _ in self.blocks], device, order=order)

    def _next(self, ids: Tensor | None, memory: Memory) -> Tensor:
        """The state [B, 1, width] that the next token is chosen from, after the memory has read the last one."""
        if ids is None:
            memory.asked = self._ask(memory.condition, memory.batch, memory.device)
            memory.positions = self._sequence_positions(memory.order, memory.device)
            h = torch.cat(self._prefix(memory.asked), dim=1)
        else:
            h = self.token_embedding(ids[:, None])
        return self._run(h, memory.step(h.shape[1]), memory.asked, memory.positions, caches=memory.caches)[:, -1:]

    def _run(
        self,
        h: Tensor,
        span: slice,
        asked: Asked,
        positions: SequencePositions,
        dropout: Draws | None = None,
        caches: list[Cache] | None = None,
    ) -> Tensor:
        """Embedded positions [B, S, width], which are `span` of the sequence, through the blocks and the last norm."""
        added, rotary = positions.at(span)
        h = h if added is None else h + added
        rate = self.config.token_dropout
        if dropout is not None and rate:
            h = apply_dropout(h, dropout.keep_mask("tokens", tuple(h.shape[1:]), rate), rate)
        c, attended = (), asked.attended(span)
        if self.steps is not None:
            steps = F.pad(self.steps, (0, 0, self.context, 0))[span]
            c = (F.silu(asked.vector[:, None] + steps),)  # modulations begin with it
        for i in range(len(self.blocks)):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                h = self._gradient_checkpointing_func(self._block, i, h, c, (rotary, attended), dropout)
            else:
                h = self._block(i, h, c, (rotary, attended), dropout, caches)
        return self.last_norm(h, *c)

    def _block(
        self,
        i: int,
        h: Tensor,
        c: tuple[Tensor, ...],
        seen: tuple[Rotary | None, Attended],
        dropout: Draws | None,
        caches: list[Cache] | None = None,
    ) -> Tensor:
        """Block `i` with its dropout, whose masks a checkpointed pass draws again instead of storing them."""
        block, cache, (rotary, attended) = self.blocks[i], None if caches is None else caches[i], seen
        return block(h, *c, rotary, block.masks(dropout, h.shape[1], f"blocks.{i}"), cache, attended)

    @property
    def before(self) -> int:
        """Places before those of the tokens: of the caption, of the start token and of the class."""
        return self.context + self.prefix

    def _ask(self, condition: Condition | None, batch: int, device: torch.device) -> Asked:
        """The class and the caption of every image, embedded."""
        labels, caption = self.labels(condition, batch, device), self.caption(condition, batch, device)
        if self.class_embedding is None:
            vector = torch.zeros(batch, self.config.width, dtype=caption.places.dtype, device=device)
        else:
            vector = self.class_embedding(labels)
        if caption is not None and caption.vector is not None:
            vector = vector + caption.vector
        return Asked(vector, align_right(caption))

    def _prefix(self, asked: Asked) -> list[Tensor]:
        """What precedes the tokens, each [B, n, width]: the caption's places, the start token and the class."""
        vector, parts = asked.vector, [asked.caption.places] if self.context else []
        if self.start is not None:
            parts.append(self.start.to(vector.dtype).expand_as(vector)[:, None])
        return parts if self.class_embedding is None else [*parts, vector[:, None]]

    def _sequence_positions(self, order: Tensor | None, device: torch.device) -> SequencePositions:
        """The positions of the prefix and of all tokens, in this order."""
        index = added = rotary = None
        if order is not None:
            first = torch.arange(self.before, device=device).expand(len(order), -1)
            index = torch.cat([first, self.before + order], dim=1)  # [B, before + N]
        if self.positions is not None:
            added = F.pad(self.positions, (0, 0, self.context, 0))
            added = added if index is None else added[index]
        if self.targets is not None:
            targets = self.targets if order is None else self.targets[order]
            targets = F.pad(targets, (0, 0, self.before - 1, 1))  # added one position before; the last predicts nothing
            added = targets if added is None else added + targets
        if self.cosines is not None:
            tables = (self.cosines, self.sines)
            rotary = tables if index is None else tuple(table[index][:, None] for table in tables)
        return SequencePositions(added, rotary)

    def _register_positions(self, position_grid: Counts | None) -> None:
        """Rotary tables [before + N, D] or learned positions [prefix + N, width]; captions have none."""
        config, cosines, sines = self.config, None, None
        learned = config.position == "learned"
        if not learned:
            grids = [list(config.grid), position_grid]
            if config.position == "rotary_sequence":
                grids = [grid and [math.prod(grid)] for grid in grids]
            tables = rotary_tables(grids[0], config.width // config.heads, grids[1])
            cosines, sines = (F.pad(table, (0, 0, self.before, 0)) for table in tables)
            cosines[: self.before] = config.prefix_rotary == "none"
        register_table(self, "cosines", cosines)
        register_table(self, "sines", sines)
        self.positions = nn.Parameter(torch.zeros(self.prefix + self.tokens, config.width)) if learned else None

    def _initialise(self) -> None:
        """As published: normal weights, modulations at zero, and with `zero_head` the head."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for table in (self.positions, self.targets, self.steps):
            if table is not None:
                nn.init.normal_(table, std=0.02)
        modulations = [m.modulation for m in self.modules() if isinstance(m, (ModulatedCausalBlock, ModulatedNorm))]
        for layer in [*modulations, *(self.head.outputs if self.config.zero_head else ())]:
            nn.init.zeros_(layer.weight)
        silence_captions(self)
