"""The transformer of masked continuous tokens that meets captions in joint attention, as MaskGen-KL uses it."""

import math
from typing import Literal

import torch
from diffusers import ModelMixin  # noqa: F401  diffusers looks for it in the component's own module when loading
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.networks.base import MaskedLatentNetwork, check_axes, check_widths
from pipeline.nn.blocks import EPSILON
from pipeline.nn.conditions import check_layer, spec_read
from pipeline.nn.joint_blocks import ImageVector, JointTrunk, begin_joint
from pipeline.nn.modulated import check_patches
from pipeline.nn.text import PARTS as TEXT
from pipeline.nn.text import TextNull, TextReader
from pipeline.nn.token_denoiser import TokenDenoiser
from pipeline.nn.tokens import put_places, take_places
from pipeline.ranges import Count, Counts, Fraction, NotNegative, Positive, Whole


class JointMaskedLatentTransformer(MaskedLatentNetwork, AttentionMixin, PeftAdapterMixin):
    """MaskGen-KL (Kim et al., arXiv:2501.07730): MAR's tokens without an encoder, and a caption's places.

    All places of the code, a mask token at those that are not known, go with the caption's through joint blocks, which
    are modulated as those of `joint_masked_transformer`. The head of `head_depth` blocks denoises a token by its state.

    `grid`, `dim`, `num_classes`, `outputs` and the captions' geometry are derived; `text_layer` as there. Patches of a
    code are its tokens.
    There is no dropout.

    Raises ValueError, as `validate` does, when sizes do not fit together.
    """

    parts = {
        "labels": ("vector.label_embedding",),
        "text": TEXT,
        "positions": ("positions", "state_positions"),
        "codes": ("token_embedding", "head.embedding", "head.output.linear"),
    }
    _supports_gradient_checkpointing = True
    _no_split_modules = ["JointBlock", "ModulatedBlock", "ModulatedMLPBlock"]
    _repeated_blocks = ["JointBlock", "ModulatedBlock", "ModulatedMLPBlock"]
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
        feed_forward_ratio: Positive = 4.0,
        head_depth: Count = 8,
        head_width: Count = 1024,
        condition_drop: Fraction = 0.1,
        time_scale: Positive = 1000.0,
        time_direction: Literal["noise", "data"] = "noise",
        score_width: Whole = 0,
        score_period: Positive = 10000.0,
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
        channels, tokens = patch_size ** len(grid) * dim, math.prod(self.patch_grid(self.config))
        self.token_embedding = nn.Linear(channels, width)
        self.norm_in = nn.LayerNorm(width, eps=EPSILON)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(tokens, width))
        self.text = text and TextReader(text, width, "context", "linear", text_null)
        self.vector = ImageVector(width, num_classes, score_width, score_period, bool(text and text.pooled))
        self.trunk = JointTrunk(width, heads, depth, feed_forward_ratio, text is not None)
        self.state_positions = nn.Parameter(torch.empty(tokens, width))
        self.head = TokenDenoiser(channels, outputs * channels, width, head_width, head_depth)
        self._initialise()

    @classmethod
    def validate(cls, arguments: Arguments) -> None:
        """Raises ValueError with one line when these constructor arguments do not fit together; builds nothing."""
        check_widths(arguments)
        check_layer(arguments)
        check_axes("joint_masked_latent_transformer", arguments.grid)
        check_patches(arguments.grid, arguments.patch_size)

    def states(
        self, tokens: Tensor, known: Tensor, condition: Condition | None = None, dropout: Draws | None = None
    ) -> Tensor:
        self.check_tokens(tokens)
        caption = self.caption(condition, len(tokens), tokens.device)
        vector = self.vector(*self.labels_and_scores(condition, len(tokens), tokens.device), caption)
        seen = self.norm_in(self.token_embedding(take_places(tokens, known)))
        h = put_places(self.mask_token.expand(*tokens.shape[:2], -1).to(seen.dtype), seen, known)
        return self.trunk(h + self.positions, vector, caption) + self.state_positions

    @torch.no_grad()
    def _initialise(self) -> None:
        """As published, Xavier linear layers; blocks begin as the identity (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for weight in (self.positions, self.state_positions, self.mask_token):
            nn.init.normal_(weight, std=0.02)
        begin_joint(self.trunk)
        self.head.initialise()
