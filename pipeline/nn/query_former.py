"""Causal queries that read features of an image: BERT's post-norm layers, some of which attend to the features too."""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.convolution import Tower
from pipeline.nn.cross_attention import CrossAttention
from pipeline.nn.embeddings import learned_vectors

EPSILON = 1e-12  # of the norms, as BERT's
EVERY = 2  # layers 0, 2, 4, ... attend to the features, as BLIP-2's


class PostNormAttention(CrossAttention):
    """norm(x + attention) of x to itself, if `causal` to places before alone, or to a memory of `inputs` channels."""

    def __init__(self, width: int, heads: int, inputs: int | None = None, causal: bool = False):
        super().__init__(width, heads, inputs)
        self.causal, self.norm = causal, nn.LayerNorm(width, eps=EPSILON)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x [B, N, width] and a memory [B, M, inputs], None for x itself, to [B, N, width]."""
        read = x if memory is None else memory
        return self.norm(x + super().forward(x, read, read, causal=self.causal and x.shape[1] > 1))


class QueryFormerBlock(nn.Module):
    """Self-attention, attention to the features where it `reads`, and linear, exact GELU, linear."""

    def __init__(self, width: int, heads: int, hidden: int, inputs: int, reads: bool, causal: bool):
        super().__init__()
        self.attention = PostNormAttention(width, heads, causal=causal)
        self.reading = PostNormAttention(width, heads, inputs) if reads else None
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, hidden_states: Tensor, memory: Tensor) -> Tensor:
        """hidden_states [B, N, width] and memory [B, M, inputs] to [B, N, width]."""
        h = self.attention(hidden_states)
        if self.reading is not None:
            h = self.reading(h, memory)
        return self.norm(h + self.down(F.gelu(self.up(h))))


class QueryFormer(Tower):
    """A memory [B, M, inputs] to the states of `count` learned queries, [B, count, width].

    The Q-Former of BLIP-2 (Li et al., arXiv:2301.12597), without its text; if `causal`, a query sees itself and those
    before it, as SEED (Ge et al., arXiv:2307.08041) has it.
    """

    def __init__(self, count: int, inputs: int, width: int, depth: int, heads: int, hidden: int, causal: bool):
        super().__init__()
        self.queries = learned_vectors(count, width)
        self.norm_in = nn.LayerNorm(width, eps=EPSILON)
        self.blocks = nn.ModuleList(
            QueryFormerBlock(width, heads, hidden, inputs, number % EVERY == 0, causal) for number in range(depth)
        )

    def forward(self, memory: Tensor) -> Tensor:
        h = self.norm_in(self.queries).to(memory.dtype).expand(len(memory), -1, -1)
        for block in self.blocks:
            h = self.run(block, h, memory)
        return h
