"""The transformer of HAR: all ids of a level at once, given those of the level before and special tokens."""

import torch
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it in the component's own module when loading
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.networks.base import Network, check_widths
from pipeline.nn.blocks import Attended
from pipeline.nn.causal import BlockShape, Cache, CausalBlock, hidden_width, learned_norm
from pipeline.nn.conditions import refuse_text
from pipeline.nn.dropout import apply_dropout
from pipeline.nn.embeddings import LabelEmbedding, register_table, resample_positions, rotary_tables
from pipeline.nn.level_sampling import LevelMemory, LevelSampling
from pipeline.nn.tokens import HEAD_TABLES, Choose, TokenEmbedding, TokenHead
from pipeline.ranges import Count, Counts, Fraction, FractionBelowOne, Positive, Whole


class ParallelLevelTransformer(LevelSampling, Network, AttentionMixin, PeftAdapterMixin):
    """Ids of a code with levels, each level given the class and all levels before it.

    HAR, the generator of ResTok (arXiv:2601.03955). A level of n tokens is predicted at n places of the sequence: those
    of the m tokens of the level before (of the class, for the first level) and n - m special tokens, so that levels may
    not shrink. Places see their own level's and those before. Levels of one token are predicted as by LlamaGen, one
    after another. `grid`, `levels`, `vocab`, `codebooks` and `num_classes` are derived.

    Rotary positions are counted along the sequence from the class's place, 0. The released class has N - 1 special
    tokens, of which it reads the first levels[-1] - 1; here there are no others.

    Args:
        feed_forward_ratio: the hidden width over the width; SwiGLU takes two thirds of it, since it has three matrices.
        feed_forward_multiple: the hidden width is rounded up to a multiple of it.
        token_dropout: of the embedded sequence. residual_dropout: of what each branch adds. feed_forward_dropout: of
            the activations inside the feed-forward layer.

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    role = "levels"
    parts = {
        "labels": ("class_embedding",),
        "positions": ("specials",),
        "codes": ("token_embedding", "head"),
    }
    code_tables = ("token_embedding.tables.*.weight", *HEAD_TABLES)
    _supports_gradient_checkpointing = True
    _no_split_modules = ["CausalBlock"]
    _repeated_blocks = ["CausalBlock"]
    _skip_layerwise_casting_patterns = ["embedding", "norm", "specials"]

    @register_to_config
    def __init__(
        self,
        grid: Counts,
        levels: Counts,
        vocab: Count,
        num_classes: Whole,
        depth: Count,
        width: Count,
        heads: Count,
        codebooks: Count = 1,
        norm_epsilon: Positive = 1e-5,
        feed_forward_ratio: Positive = 4.0,
        feed_forward_multiple: Count = 1,
        condition_drop: Fraction = 0.1,
        token_dropout: FractionBelowOne = 0.0,
        residual_dropout: FractionBelowOne = 0.0,
        feed_forward_dropout: FractionBelowOne = 0.0,
    ):
        super().__init__()
        self.validate(Arguments.from_config(self))
        self.gradient_checkpointing = False
        self.number_levels(levels)
        self.class_embedding = LabelEmbedding(num_classes, width)
        self.token_embedding = TokenEmbedding(vocab, codebooks, width)
        self.specials = nn.Parameter(torch.zeros(levels[-1] - 1, width))
        for name, table in zip(("cosines", "sines"), rotary_tables([self.tokens], width // heads)):
            register_table(self, name, table)  # [N, D]
        hidden = hidden_width(width, "swiglu", feed_forward_ratio, feed_forward_multiple)
        dropouts = residual_dropout, feed_forward_dropout, 0.0
        shape = BlockShape(width, heads, "rms", norm_epsilon, "swiglu", hidden, False, False, *dropouts)
        self.blocks = nn.ModuleList(CausalBlock(shape) for _ in range(depth))
        self.last_norm = learned_norm("rms", width, norm_epsilon)
        self.head = TokenHead(vocab, codebooks, width)
        self._initialise()

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        check_widths(arguments)
        levels, head_width = list(arguments["levels"]), arguments["width"] // arguments["heads"]
        if not levels or levels != sorted(levels):
            given = f"levels of {levels} tokens" if levels else "no levels"
            raise ValueError(
                f"parallel_level_transformer predicts levels that do not shrink, and this code has {given}; take a"
                " tokenizer whose code has such levels, or another network"
            )
        if head_width % 2:
            raise ValueError(f"rotary positions need width / heads divisible by 2, not {head_width}")

    def forward(
        self,
        ids: Tensor | None,
        condition: Condition | None = None,
        dropout: Draws | None = None,
        memory: LevelMemory | None = None,
        choose: Choose | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, N, codebooks, vocab] of ids [B, N] or [B, N, codebooks], each given those of the levels before.

        Without a condition a network of classes predicts for its null class. `dropout` is where its masks come from;
        None leaves everything. `memory`, `choose` and `weights` are for `advance`.

        Raises ValueError when an unconditional network is given labels, when N is not that of the levels, and for
        `weights`, as `code_vectors` does.
        """
        if weights is not None:
            self.code_vectors(ids, weights)
        if memory is not None:
            return self.head.choose(self._next(ids, memory), choose)
        ids = self.stack_levels(ids)
        levels = list(self.config.levels)
        before = [self._class(condition, len(ids), ids.device)]
        before += self.token_embedding(ids[:, : self.tokens - levels[-1]]).split(levels[:-1], dim=1)
        h = torch.cat([self._inputs(rows, level) for level, rows in enumerate(before)], dim=1)
        return self.head(self._run(h, slice(0, self.tokens), self.seen, dropout), ids)

    def code_vectors(self, ids: Tensor, weights: Tensor | None = None) -> Tensor:
        """ValueError: it reads ids, and knows no vectors of theirs that could be mixed."""
        raise ValueError("smooth mixes code vectors, and a parallel_level_transformer reads ids alone; leave it out")

    def resample(self, name: str, weight: Tensor, other: "ParallelLevelTransformer") -> Tensor:
        """Special tokens from those of a network of other levels, along their row."""
        if not len(weight) or not len(self.specials):
            return self.specials
        return resample_positions(weight, [len(weight)], [len(self.specials)])

    @torch.no_grad()
    def _next(self, ids: Tensor | None, memory: LevelMemory) -> Tensor:
        """The states [B, n, width] that the ids of the next level are chosen from."""
        began = ids is not None
        rows = self.token_embedding(ids) if began else self._class(memory.condition, memory.batch, memory.device)
        h = self._inputs(rows, memory.level)
        span = memory.step(self.config.levels)
        seen = torch.ones(h.shape[1], span.stop, dtype=torch.bool, device=h.device)
        return self._run(h, span, seen, caches=memory.caches)

    def _class(self, condition: Condition | None, batch: int, device: torch.device) -> Tensor:
        """The class of every image, embedded, [B, 1, width]."""
        refuse_text(condition)
        return self.class_embedding(self.labels(condition, batch, device))[:, None]

    def _inputs(self, rows: Tensor, level: int) -> Tensor:
        """What a level of n tokens is predicted from, [B, n, width]: rows [B, m, width] and n - m special tokens."""
        first, stop = rows.shape[1] - 1, self.config.levels[level] - 1  # all levels before have used `first` of them
        specials = self.specials[first:stop].to(rows.dtype)
        return torch.cat([rows, specials.expand(len(rows), -1, -1)], dim=1)

    def _run(
        self,
        h: Tensor,
        span: slice,
        seen: Tensor,
        dropout: Draws | None = None,
        caches: list[Cache] | None = None,
    ) -> Tensor:
        """Embedded places [B, S, width], which are `span` of the sequence, through the blocks and the last norm."""
        rotary, attended, rate = (self.cosines[span], self.sines[span]), Attended(seen), self.config.token_dropout
        if dropout is not None and rate:
            h = apply_dropout(h, dropout.keep_mask("tokens", tuple(h.shape[1:]), rate), rate)
        for i, block in enumerate(self.blocks):
            masks, cache = block.masks(dropout, h.shape[1], f"blocks.{i}"), None if caches is None else caches[i]
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                h = self._gradient_checkpointing_func(block, h, rotary, masks, None, attended)
            else:
                h = block(h, rotary, masks, cache, attended)
        return self.last_norm(h)

    @torch.no_grad()
    def _initialise(self) -> None:
        """As LlamaGen's code: normal weights of std 0.02, the head at zero."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.specials, std=0.02)
        for layer in self.head.outputs:
            nn.init.zeros_(layer.weight)
