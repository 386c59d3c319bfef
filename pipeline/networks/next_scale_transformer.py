"""The transformer of VAR: the ids of a whole scale at once, given the map that those of the scales before add up to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
from pipeline.networks.base import Network, check_widths
from pipeline.nn.causal import Cache, ModulatedNorm
from pipeline.nn.conditions import refuse_text
from pipeline.nn.embeddings import LabelEmbedding, resample_positions
from pipeline.nn.full_precision import full_precision
from pipeline.nn.level_blocks import LevelBlock, LevelBlockShape
from pipeline.nn.level_sampling import LevelMemory, LevelSampling
from pipeline.nn.scales import LevelTables
from pipeline.nn.tokens import HEAD_TABLES, Choose, TokenHead
from pipeline.ranges import Count, Counts, Fraction, FractionBelowOne, NotNegative, Positive, Whole

HEAD = 0.02  # what the head's first weights are multiplied by, in VAR's code
MODULATION = 0.5  # the same of scales and shifts


@dataclass
class Memory(LevelMemory):
    """What the network keeps between the levels of one sampling; made by `NextScaleTransformer.begin`."""

    classes: Tensor | None = None  # [B, width]  the embedded condition
    total: Tensor | None = None  # [B, C, s, s] the map that the levels so far add up to


class NextScaleTransformer(LevelSampling, Network, AttentionMixin, PeftAdapterMixin):
    """Ids of a code of levels that are square maps, each level given the class and all levels before it.

    VAR (Tian et al., arXiv:2404.02905). The first level is predicted from the class; each other one from the map that
    the code vectors of all before add up to, averaged down to the level's size. Tokens see their own level and those
    before. `grid`, `levels`, `dim`, `vocab`, `codebooks` and `num_classes` are derived.

    The code vectors, and how they add up, are the tokenizer's: `take_bottleneck` copies them before a training, and
    they are saved with the network, so that sampling needs no tokenizer.

    Args:
        query_key_norm: unit queries and keys, as in the released models.
        shared_modulation: one layer makes the modulations of all blocks, to which each adds numbers of its own.
        drop_path: probability that an image skips a branch of the last block; it rises linearly from 0 at the first.
        gate_start: what multiplies the first weights of the gates: 1e-5 for the largest of VAR, 1e-3 for small ones.

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    role = "levels"
    parts = {
        "labels": ("class_embedding",),
        "positions": ("positions", "start", "level_embedding"),
        "codes": ("word_embedding", "head", "codebook", "kernels", "offsets"),
    }
    code_tables = HEAD_TABLES  # ids are read as the tokenizer's vectors of them
    entry_points = ("code_vectors",)
    taken = ("codebook", "kernels", "offsets")
    memory_class = Memory
    _supports_gradient_checkpointing = True
    _no_split_modules = ["LevelBlock"]
    _repeated_blocks = ["LevelBlock"]
    _skip_layerwise_casting_patterns = ["embedding", "norm", "modulation", "positions", "start"]

    @register_to_config
    def __init__(
        self,
        grid: Counts,
        levels: Counts,
        dim: Count,
        vocab: Count,
        num_classes: Whole,
        depth: Count,
        width: Count,
        heads: Count,
        codebooks: Count = 1,
        feed_forward_ratio: Positive = 4.0,
        norm_epsilon: Positive = 1e-6,
        query_key_norm: bool = True,
        shared_modulation: bool = False,
        condition_drop: Fraction = 0.1,
        drop_path: FractionBelowOne = 0.0,
        gate_start: NotNegative = 1e-3,
    ):
        super().__init__()
        self.validate(Arguments.from_config(self))
        self.gradient_checkpointing = False
        self.number_levels(levels)
        self.sides = tuple(math.isqrt(tokens) for tokens in levels)
        self.register_buffer("codebook", torch.randn(codebooks, vocab, dim))
        self.register_buffer("kernels", torch.randn(len(levels) * dim, dim, 3, 3) / (3 * dim**0.5))
        self.register_buffer("offsets", torch.zeros(len(levels), dim))
        self.class_embedding = LabelEmbedding(num_classes, width)
        self.word_embedding = nn.Linear(dim, width)
        self.start = nn.Parameter(torch.zeros(levels[0], width))
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.level_embedding = nn.Embedding(len(levels), width)
        shape = LevelBlockShape(width, heads, feed_forward_ratio, norm_epsilon, query_key_norm, shared_modulation)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(LevelBlock(shape, rate) for rate in rates)
        self.modulation = nn.Linear(width, 6 * width) if shared_modulation else None
        self.last_norm = ModulatedNorm("layer", width, norm_epsilon)
        self.head = TokenHead(vocab, codebooks, width, bias=True)
        self._initialise(gate_start)

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        check_widths(arguments)
        levels = arguments["levels"]
        if not levels or any(math.isqrt(tokens) ** 2 != tokens for tokens in levels):
            given = f"levels of {list(levels)} tokens" if levels else "no levels"
            raise ValueError(
                f"next_scale_transformer predicts the ids of growing square maps, and this code has {given}; take"
                " tokenizer.model.bottleneck.kind=multi_scale, or another network"
            )

    def forward(
        self,
        ids: Tensor | None,
        condition: Condition | None = None,
        dropout: Draws | None = None,
        memory: Memory | None = None,
        choose: Choose | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, N, codebooks, vocab] of ids [B, N] or [B, N, codebooks], each given those of the levels before.

        Without a condition a network of classes predicts for its null class. `dropout` is where its masks come from;
        None leaves everything. `memory`, `choose` and `weights` are for `advance`.

        Raises ValueError when an unconditional network is given labels, and when N is not that of the levels.
        """
        if memory is not None:
            return self.head.choose(self._next(ids, memory, weights), choose)
        ids = self.stack_levels(ids)
        with torch.no_grad(), full_precision(self.codebook):
            inputs = self.tables.inputs(self.tables.rows(ids))
        classes = self._classes(condition, len(ids), ids.device)
        h = torch.cat([self._first(classes), self._embed(inputs)], dim=1)
        return self.head(self._run(h, slice(0, self.tokens), classes, self.seen, dropout), ids)

    def code_vectors(self, ids: Tensor, weights: Tensor | None = None) -> Tensor:
        """What ids [B, n, codebooks] stand for, [B, n, dim]; with weights [B, n, codebooks, vocab] a mixture of all."""
        if weights is None:
            return self.tables.rows(ids)
        with full_precision(weights):
            return sum(weights[..., k, :].float() @ table.float() for k, table in enumerate(self.codebook))

    @property
    def tables(self) -> LevelTables:
        return LevelTables(self.sides, self.kernels.unflatten(0, self.offsets.shape), self.offsets, self.codebook)

    def tables_of(self, bottleneck: nn.Module) -> dict[str, Tensor]:
        tables = bottleneck.level_tables()
        return {"codebook": tables.codebook, "kernels": tables.kernels.flatten(0, 1), "offsets": tables.offsets}

    def resample(self, name: str, weight: Tensor, other: "NextScaleTransformer") -> Tensor:
        """Positions of a level from those of the level of `other` at the same place among its own."""
        if name == "start":
            return resample_positions(weight, [other.sides[0]] * 2, [self.sides[0]] * 2)
        if name.startswith("level_embedding"):
            return resample_positions(weight, [len(other.sides)], [len(self.sides)])
        maps, last = weight.split([side * side for side in other.sides]), max(len(self.sides) - 1, 1)
        places = [round(level * (len(maps) - 1) / last) for level in range(len(self.sides))]
        grids = [([other.sides[place]] * 2, [side] * 2) for place, side in zip(places, self.sides)]
        return torch.cat([resample_positions(maps[place], *grid) for place, grid in zip(places, grids)])

    @torch.no_grad()
    def _next(self, ids: Tensor | None, memory: Memory, weights: Tensor | None) -> Tensor:
        """The states [B, n, width] that the ids of the next level are chosen from."""
        if ids is None:
            memory.classes = self._classes(memory.condition, memory.batch, memory.device)
            memory.total = self.tables.start(memory.batch)
            h = self._first(memory.classes)
        else:
            with full_precision(self.codebook):
                rows = self.code_vectors(ids, weights)
                memory.total = self.tables.add(memory.total, rows, memory.level - 1)
                h = self._embed(self.tables.reduce(memory.total, memory.level))
        return self._run(h, memory.step(self.config.levels), memory.classes, caches=memory.caches)

    def _run(
        self,
        h: Tensor,
        span: slice,
        classes: Tensor,
        seen: Tensor | None = None,
        dropout: Draws | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Tensor:
        """Embedded tokens [B, S, width], which are `span` of the code, through the blocks and the last norm."""
        h = h + self.positions[span] + self.level_embedding(self.level_numbers[span])
        c = F.silu(classes)
        modulations = c if self.modulation is None else self.modulation(c)
        for i, block in enumerate(self.blocks):
            cache = None if caches is None else caches[i]
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                masks = block.masks(dropout, f"blocks.{i}")
                h = self._gradient_checkpointing_func(block, h, modulations, seen, masks)
            else:
                h = block(h, modulations, seen, block.masks(dropout, f"blocks.{i}"), cache)
        return self.last_norm(h, c[:, None])

    def _classes(self, condition: Condition | None, batch: int, device: torch.device) -> Tensor:
        """The class of every image, embedded, [B, width]."""
        refuse_text(condition)
        return self.class_embedding(self.labels(condition, batch, device))

    def _first(self, classes: Tensor) -> Tensor:
        """What the first level is predicted from, [B, n, width]."""
        return classes[:, None] + self.start.to(classes.dtype)

    def _embed(self, inputs: Tensor) -> Tensor:
        return self.word_embedding(inputs.to(self.word_embedding.weight.dtype))

    @torch.no_grad()
    def _initialise(self, gate_start: float) -> None:
        """As in VAR's code: normal weights, branches scaled down by depth, modulations and head small."""
        std = (3 * self.config.width) ** -0.5
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for table in (self.positions, self.start):
            nn.init.trunc_normal_(table, std=std)
        for block in self.blocks:
            for layer in (block.attention.proj, block.feed_forward.down):
                layer.weight.div_((2 * len(self.blocks)) ** 0.5)
        for block in self.blocks:
            if block.shifts is not None:
                nn.init.normal_(block.shifts, std=self.config.width**-0.5)
        layers = [layer for layer in (self.modulation, *(b.modulation for b in self.blocks)) if layer is not None]
        factors = torch.tensor([MODULATION, MODULATION, gate_start] * 2).repeat_interleave(self.config.width)
        for table in (*(layer.weight for layer in layers), *(b.shifts for b in self.blocks if b.shifts is not None)):
            table.mul_(factors.view(-1, *[1] * (table.ndim - 1)))
        for layer, factor in ((self.last_norm.modulation, MODULATION), *((layer, HEAD) for layer in self.head.outputs)):
            layer.weight.mul_(factor)
