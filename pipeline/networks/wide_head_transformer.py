"""The transformer on noisy codes of many channels: a deep trunk, and a wide head modulated by its output."""

from collections.abc import Iterable, Sequence
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
from pipeline.nn.blocks import FeedForward, ModulatedBlock, ModulatedHead, Norm, QueryKeyNorm
from pipeline.nn.embeddings import GaussianTimeEmbedding, LabelEmbedding, patchify, unpatchify
from pipeline.nn.modulated import ModulatedTransformer, Patches, check_count, check_patches, check_position
from pipeline.nn.text import PARTS as TEXT
from pipeline.nn.text import TextNull, TextProjection, TextReading
from pipeline.ranges import Count, Counts, Fraction, Positive, Whole


class WideHeadTransformer(Network, ModulatedTransformer, AttentionMixin, CacheMixin, PeftAdapterMixin):
    """DiT^DH of RAE (Zheng et al., arXiv:2510.11690) and RecTok; the split is that of DDT (arXiv:2504.05741).

    A trunk of LightningDiT's blocks, modulated by time and class, reads the noisy code. Its output plus the time's
    vector, after a SiLU and a projection to the head's width, modulates the head's blocks, token by token. The head
    embeds the noisy code anew: it must be as wide as a token has channels, or noise cannot pass (RAE, section 4), the
    trunk need not. Positions are fixed and rotary in the trunk (`position`), rotary in the head; times have Gaussian
    frequencies.

    The trunk reads captions as a diffusion_transformer does.
    `grid`, `dim`, `num_classes` (0: unconditional) and `outputs` are derived, and so is `position_grid`, the grid that
    positions are counted on where it is another. The frequencies see u for
    `time_direction="noise"` (RAE) and 1 - u for `"data"` (RecTok). Before training linear layers are Xavier's or, as
    in the released code, but for the embeddings of codes, as torch makes them (`initialisation`).

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    parts = {
        "labels": ("label_embedding",),
        "text": TEXT,
        "positions": ("positions",),
        "codes": ("patch_embedding", "head_embedding", "head.linear"),
    }
    _supports_gradient_checkpointing = True
    _no_split_modules = ["ModulatedBlock"]
    _repeated_blocks = ["ModulatedBlock"]
    _skip_layerwise_casting_patterns = ["embedding", "norm", "modulation"]
    _keep_in_fp32_modules = ["frequencies"]  # rounding high frequencies would change the time

    @register_to_config
    def __init__(
        self,
        grid: Counts,
        dim: Count,
        num_classes: Whole,
        depth: Count,
        width: Count,
        heads: Count,
        head_depth: Count = 2,
        head_width: Count = 2048,
        head_heads: Count = 16,
        outputs: Count = 1,
        patch_size: Count = 1,
        feed_forward_ratio: Positive = 4.0,
        query_key_norm: QueryKeyNorm = False,
        condition_drop: Fraction = 0.1,
        time_direction: Literal["noise", "data"] = "noise",
        initialisation: Literal["xavier", "torch"] = "xavier",
        position: Literal["rotary", "rotary_and_fixed"] = "rotary_and_fixed",
        norm: Norm = "rms",
        feed_forward: FeedForward = "swiglu",
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
        patch, patches = patch_size ** len(grid), Patches.of(grid, position_grid, patch_size)
        self.patch_embedding = nn.Linear(patch * dim, width)
        self.time_embedding = GaussianTimeEmbedding(width)
        self.label_embedding = LabelEmbedding(num_classes, width) if num_classes else None
        self.set_positions(patches, position, width, heads)
        style = (norm, feed_forward, feed_forward_ratio, query_key_norm)
        self.text = self.make_text_reader(width)
        self.blocks = nn.ModuleList(ModulatedBlock(width, heads, *style, self.reads_across) for _ in range(depth))
        self.head_request = nn.Linear(width, head_width) if width != head_width else nn.Identity()
        self.head_embedding = nn.Linear(patch * dim, head_width)
        self.set_rotary(patches, head_width // head_heads, "head_")
        self.head_blocks = nn.ModuleList(ModulatedBlock(head_width, head_heads, *style) for _ in range(head_depth))
        self.head = ModulatedHead(head_width, patch * outputs * dim, norm)
        self.initialise(None if initialisation == "xavier" else [self.patch_embedding, self.head_embedding])

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        check_widths(arguments)
        check_widths(arguments, "head_")
        check_axes("wide_head_transformer", arguments.grid)
        check_patches(arguments.grid, arguments.patch_size)
        check_position(arguments.grid, arguments.position, arguments.width, arguments.heads)
        check_position(arguments.grid, "rotary", arguments.head_width, arguments.head_heads)

    def forward(
        self, hidden_states: Tensor, time: Tensor, condition: Condition | None = None, taps: Sequence[int] = ()
    ) -> Tensor | Tapped:
        """hidden_states [B, N, dim] at noise levels `time` [B] (float32 in [0, 1]) to [B, N, outputs * dim].

        With `taps` also the hidden states [B, N / patch_size^axes, width] after these blocks of the trunk (1 is the
        first). Without a condition a network of classes answers for its null class. Raises ValueError when an
        unconditional network is given labels, when N is not the grid's, and for a tap that is no block of the trunk.
        """
        check_taps(taps, len(self.blocks))
        x, moment = self._embed_inputs(hidden_states, time)
        s, tapped = self._understand(self.blocks, x, moment, condition, taps)
        request = F.silu(self.head_request(F.silu(s + moment[:, None])))  # [B, N / patch^axes, head_width]
        h, _ = self.run_blocks(self.head_blocks, self.head_embedding(x), request, (self.head_cosines, self.head_sines))
        prediction = unpatchify(self.head(h, request), self.config.grid, self.config.patch_size)
        return (prediction, tapped) if taps else prediction

    def tap_blocks(
        self, hidden_states: Tensor, time: Tensor, condition: Condition | None, taps: Sequence[int]
    ) -> list[Tensor]:
        check_taps(taps, len(self.blocks))
        x, moment = self._embed_inputs(hidden_states, time)
        return self._understand(self.blocks[: max(taps)], x, moment, condition, taps)[1]

    def _embed_inputs(self, hidden_states: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [B, N / patch^axes, patch^axes * dim], and the times embedded, [B, width]."""
        check_count(hidden_states, self.config.grid)
        noise = time.float() if self.config.time_direction == "noise" else 1 - time.float()
        return patchify(hidden_states, self.config.grid, self.config.patch_size), self.time_embedding(noise)

    def _understand(
        self, blocks: Iterable[nn.Module], x: Tensor, moment: Tensor, condition: Condition | None, taps: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """What these blocks of the trunk make of patches x at times embedded as `moment`, and its taps."""
        labels, caption = (read(condition, len(x), x.device) for read in (self.labels, self.caption))
        vector = moment if self.label_embedding is None else moment + self.label_embedding(labels)
        vector = vector if caption is None or caption.vector is None else vector + caption.vector
        c = F.silu(F.silu(vector))  # as released: once at the request, once at the head of every modulation
        return self.run_blocks(
            blocks, self.add_positions(self.patch_embedding(x)), c, (self.cosines, self.sines), taps, caption
        )
