"""The transformer on noisy codes of DiT, SiT and LightningDiT, by its switches."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it in the component's own module when loading
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.components import Arguments
from pipeline.networks.base import Network, Tapped, check_axes, check_taps, check_widths
from pipeline.nn.blocks import ModulatedBlock, ModulatedHead, QueryKeyNorm, Rotary
from pipeline.nn.class_token import ClassTokenLayers, join_token, split_token
from pipeline.nn.embeddings import LabelEmbedding, TimeEmbedding, patchify, unpatchify
from pipeline.nn.modulated import ModulatedTransformer, Patches, Position, check_count, check_patches, check_position
from pipeline.nn.stock_model import StockModel
from pipeline.nn.stock_transformer import check_stock_transformer, stock_transformer
from pipeline.nn.text import PARTS as TEXT
from pipeline.nn.text import Caption, TextNull, TextProjection, TextReading
from pipeline.ranges import Count, Counts, Fraction, Positive, Whole


class DiffusionTransformer(Network, ModulatedTransformer, AttentionMixin, CacheMixin, PeftAdapterMixin):
    """Patches of a code through blocks modulated by time and class (Peebles and Xie, arXiv:2212.09748).

    DiT and SiT (arXiv:2401.08740): fixed positions, layer norm, GELU. LightningDiT (arXiv:2501.01423): rotary and fixed
    positions, RMS norm, SwiGLU. `grid`, `dim`, `num_classes` (0: unconditional) and `outputs` are derived; class
    `num_classes` is the null one. With outputs = 2 the last axis is [prediction channels, variance channels]. With
    a `class_token` (derived), its width, the first token is that one, without a position (REG, arXiv:2507.01467).
    Fixed and rotary positions are counted on `position_grid` (derived) where that is another than `grid`.
    Captions (`text_tokens`, ..., derived) are read as more tokens of the sequence, by cross-attention of every block
    (PixArt, arXiv:2310.00426), or as a vector that joins that of the time; see `pipeline.nn.text`.

    The sinusoid sees u * time_scale for `time_direction="noise"` and (1 - u) * time_scale for `"data"`: DiT embeds
    u * 1000; SiT and LightningDiT embed 1 - u.

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    parts = {
        "labels": ("label_embedding",),
        "text": TEXT,
        "positions": ("positions",),
        "codes": ("patch_embedding", "head.linear", "class_token_layers"),
    }
    _supports_gradient_checkpointing = True
    _no_split_modules = ["ModulatedBlock"]
    _repeated_blocks = ["ModulatedBlock"]
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
        patch_size: Count = 1,
        position: Position = "fixed",
        norm: Literal["layer", "rms"] = "layer",
        feed_forward: Literal["gelu", "swiglu"] = "gelu",
        feed_forward_ratio: Positive = 4.0,
        query_key_norm: QueryKeyNorm = False,
        condition_drop: Fraction = 0.1,
        time_scale: Positive = 1000.0,
        time_direction: Literal["noise", "data"] = "noise",
        class_token: Whole = 0,
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
        self.patch_embedding = nn.Linear(patch_size ** len(grid) * dim, width)
        self.time_embedding = TimeEmbedding(width)
        self.label_embedding = LabelEmbedding(num_classes, width) if num_classes else None
        self.set_positions(Patches.of(grid, position_grid, patch_size), position, width, heads)
        self.text = self.make_text_reader(width)
        block = (width, heads, norm, feed_forward, feed_forward_ratio, query_key_norm, self.reads_across)
        self.blocks = nn.ModuleList(ModulatedBlock(*block) for _ in range(depth))
        self.head = ModulatedHead(width, patch_size ** len(grid) * outputs * dim, norm)
        self.class_token_layers = ClassTokenLayers(class_token, width) if class_token else None
        self.initialise()

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        check_widths(arguments)
        check_axes("diffusion_transformer", arguments.grid)
        check_patches(arguments.grid, arguments.patch_size)
        check_position(arguments.grid, arguments.position, arguments.width, arguments.heads)

    def forward(
        self, hidden_states: Tensor, time: Tensor, condition: Condition | None = None, taps: Sequence[int] = ()
    ) -> Tensor | Tapped:
        """hidden_states [B, N, dim] at noise levels `time` [B] (float32 in [0, 1]) to [B, N, outputs * dim].

        With a class token both have its rows below. With `taps` also the hidden states [B, N / patch_size^axes, width]
        of the patches after these blocks (1 is the first), the class token's row before them. Without a condition a
        network of classes answers for its null class. Raises ValueError when an unconditional network is given labels,
        when N is not the grid's, and for a tap that is no block.
        """
        check_taps(taps, len(self.blocks))
        h, c, rotary, caption = self._embed_inputs(hidden_states, time, condition)
        h, tapped = self.run_blocks(self.blocks, h, c, rotary, taps, caption)
        predicted = None
        if self.class_token_layers is not None:
            predicted = self.class_token_layers.predict(h, c, self.head)
            h = h[:, 1:]
        prediction = unpatchify(self.head(h, c), self.config.grid, self.config.patch_size)
        prediction = join_token(prediction, predicted)
        return (prediction, tapped) if taps else prediction

    def tap_blocks(
        self, hidden_states: Tensor, time: Tensor, condition: Condition | None, taps: Sequence[int]
    ) -> list[Tensor]:
        check_taps(taps, len(self.blocks))
        h, c, rotary, caption = self._embed_inputs(hidden_states, time, condition)
        return self.run_blocks(self.blocks[: max(taps)], h, c, rotary, taps, caption)[1]

    def _embed_inputs(
        self, hidden_states: Tensor, time: Tensor, condition: Condition | None
    ) -> tuple[Tensor, Tensor, Rotary | None, Caption | None]:
        """What the first block reads, [B, rows, width], the condition of every block, rotary tables, and captions."""
        grid, patch = self.config.grid, self.config.patch_size
        z, token = split_token(hidden_states, self.config.class_token)
        check_count(z, grid)
        h = self.add_positions(self.patch_embedding(patchify(z, grid, patch)))  # [B, N / patch^axes, width]
        rotary = None if self.cosines is None else (self.cosines, self.sines)
        caption = self.caption(condition, len(time), time.device)
        c = F.silu(self._request(time, condition, caption))  # every modulation begins with it
        if self.class_token_layers is not None:
            h, rotary = self.class_token_layers(token, h, rotary)
        return h, c, rotary, caption

    def check_stock(self) -> None:
        check_stock_transformer(self.config)

    def stock(self) -> StockModel:
        return stock_transformer(self.config, self.state_dict())

    def _request(self, time: Tensor, condition: Condition | None, caption: Caption | None) -> Tensor:
        """The condition of every block, [B, width]: the time's vector plus the class's and the caption's."""
        noise = time.float()
        noise = noise if self.config.time_direction == "noise" else 1 - noise
        vector = self.time_embedding(noise * self.config.time_scale)
        labels = self.labels(condition, len(time), time.device)
        vector = vector if self.label_embedding is None else vector + self.label_embedding(labels)
        return vector if caption is None or caption.vector is None else vector + caption.vector
