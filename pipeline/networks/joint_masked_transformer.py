"""The transformer of masked ids that meets captions in joint attention, as MaskGen-VQ uses it."""

import math

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
from pipeline.nn.conditions import check_layer, spec_read
from pipeline.nn.joint_blocks import ImageVector, JointTrunk, begin_joint
from pipeline.nn.text import PARTS as TEXT
from pipeline.nn.text import TextNull, TextReader
from pipeline.nn.tokens import Choose, TiedTokenHead
from pipeline.ranges import Count, Counts, Fraction, NotNegative, Positive, Whole


class JointMaskedTransformer(Network, AttentionMixin, PeftAdapterMixin):
    """MaskGen-VQ (Kim et al., arXiv:2501.07730): tokens of a code, some masked, and a caption's places.

    Both go through the joint blocks of Stable Diffusion 3 (arXiv:2403.03206), modulated by the caption's pooled vector,
    the class, where there are classes, and with `score_width` the score of how good an image looks: `score` unless
    the condition has one. Logits are products with the rows of the embedding.

    `grid`, `vocab`, `codebooks`, `num_classes` and the captions' geometry are derived; of several layers of the text
    encoder `text_layer` is the number of the one that is read, counted from 0 (null: all of them). Without captions the
    blocks are modulated ones of the code alone. A token's codebooks are masked together. There is no dropout.

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    role = "masked"
    parts = {
        "labels": ("vector.label_embedding",),
        "text": TEXT,
        "positions": ("positions",),
        "codes": ("tokens",),
    }
    code_tables = ("tokens.outputs.*.weight", "tokens.told.*.table.weight")
    _supports_gradient_checkpointing = True
    _no_split_modules = ["JointBlock", "ModulatedBlock"]
    _repeated_blocks = ["JointBlock", "ModulatedBlock"]
    _skip_layerwise_casting_patterns = ["embedding", "norm", "modulation", "tokens"]

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
        feed_forward_ratio: Positive = 4.0,
        condition_drop: Fraction = 0.1,
        score_width: Whole = 0,
        score_period: Positive = 1000.0,
        score: NotNegative = 6.0,
        text_tokens: Whole = 0,
        text_dim: Whole = 0,
        text_layers: Count = 1,
        pooled_dim: Whole = 0,
        text_layer: Whole | None = None,
        text_null: TextNull = "empty",
    ):
        super().__init__()
        self.validate(Arguments.from_config(self))
        text = spec_read(self.config)
        self.tokens = TiedTokenHead(vocab, codebooks, width)
        self.positions = nn.Parameter(torch.empty(math.prod(grid), width))
        self.text = text and TextReader(text, width, "context", "linear", text_null)
        self.vector = ImageVector(width, num_classes, score_width, score_period, bool(text and text.pooled))
        self.trunk = JointTrunk(width, heads, depth, feed_forward_ratio, text is not None)
        self._initialise()

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        check_widths(arguments)
        check_layer(arguments)

    def forward(
        self,
        ids: Tensor,
        masked: Tensor,
        condition: Condition | None = None,
        choose: Choose | None = None,
        dropout: Draws | None = None,
    ) -> Tensor:
        """ids [B, N, codebooks] int64, of which the network sees those of tokens that are not `masked` [B, N] bool.

        Returns logits [B, N, codebooks, vocab], or with `choose` ids, as `BidirectionalTransformer` does. Without a
        condition it answers for its null class and null caption. Raises ValueError for labels or captions that it was
        not built with, and when N is not the grid's.
        """
        ids = stack_ids(ids)
        check_ids(ids, self.config.grid, self.config.codebooks)
        caption = self.caption(condition, len(ids), ids.device)
        vector = self.vector(*self.labels_and_scores(condition, len(ids), ids.device), caption)
        h = self.tokens.embed(ids.masked_fill(masked[..., None], self.config.vocab)) + self.positions
        h = self.trunk(h, vector, caption)
        return self.tokens(h, ids) if choose is None else self.tokens.choose(h, choose)

    def _initialise(self) -> None:
        """As published, all from N(0, 0.02^2), cut at 2; blocks begin as the identity (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for weight in (self.positions, *(table.weight for table in self.tokens.outputs)):
            nn.init.trunc_normal_(weight, std=0.02)
        begin_joint(self.trunk)
