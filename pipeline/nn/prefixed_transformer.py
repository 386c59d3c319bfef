"""A causal transformer that writes one row of ids after another row that it is given."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.draws import Draws
from pipeline.nn.causal import BlockShape, Cache, CausalBlock, PostNormCausalBlock
from pipeline.nn.entry_points import EntryPoints

Choose = Callable[[Tensor, int], Tensor]


class PrefixedTransformer(EntryPoints):
    """The second generator of DiGIT (Zhu et al., arXiv:2410.12490): ids [B, M] of a prefix, then a start, then ids.

    Both rows have tables of vectors and of positions of their own. Every place sees those before it, those of the
    prefix too. The head is of the second row alone.

    Args:
        prefix, prefix_vocab: ids of the first row, and how many different ones there are; tokens, vocab: of the second.
        hidden: width inside the feed-forward layers. dropout: of attention weights and of what each branch adds.
        post_norm: norms after the residual sums and none at the end, as the first generator of the release has them;
            else before the branches and at the end.
        special_ids: rows of the head beyond `vocab`, of ids that no code has, as released weights have; never chosen.
    """

    entry_points = ("sample",)

    def __init__(
        self,
        prefix: int,
        prefix_vocab: int,
        tokens: int,
        vocab: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        post_norm: bool = False,
        special_ids: int = 0,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.tokens, self.vocab, self.gradient_checkpointing = tokens, vocab, False
        self.prefix_table, self.table = nn.Embedding(prefix_vocab, width), nn.Embedding(vocab, width)
        self.prefix_positions = nn.Parameter(torch.zeros(prefix, width))
        self.positions = nn.Parameter(torch.zeros(tokens, width))  # of the start, and of all ids but the last
        self.start = nn.Parameter(torch.zeros(width))
        shape = BlockShape(width, heads, "layer", 1e-5, "gelu", hidden, True, False, dropout, 0.0, dropout)
        make = PostNormCausalBlock if post_norm else CausalBlock
        self.blocks = nn.ModuleList(make(shape) for _ in range(depth))
        self.norm = nn.Identity() if post_norm else nn.LayerNorm(width, eps=shape.epsilon)
        self.head = nn.Linear(width, vocab + special_ids, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for table in (self.prefix_positions, self.positions, self.start):
            nn.init.normal_(table, std=0.02)

    def forward(self, prefix: Tensor, ids: Tensor, dropout: Draws | None = None) -> Tensor:
        """Logits [B, n + 1, vocab + special_ids] after the start and each of the first n ids [B, n], n < tokens."""
        h = torch.cat([self.embed_prefix(prefix), self.embed(ids, 1)], dim=1)
        for number in range(len(self.blocks)):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                h = self._gradient_checkpointing_func(self.run, number, h, dropout)
            else:
                h = self.run(number, h, dropout)
        return self.head(self.norm(h[:, prefix.shape[1] :]))

    def run(self, number: int, h: Tensor, dropout: Draws | None) -> Tensor:
        block = self.blocks[number]
        return block(h, None, block.masks(dropout, h.shape[1], f"blocks.{number}"))

    def embed_prefix(self, prefix: Tensor) -> Tensor:
        """The vectors [B, M + 1, width] of the prefix [B, M] and of the start."""
        start = (self.start + self.positions[0]).expand(len(prefix), 1, -1)
        return torch.cat([self.prefix_table(prefix) + self.prefix_positions, start], dim=1)

    def embed(self, ids: Tensor, place: int) -> Tensor:
        """The vectors [B, n, width] of ids [B, n], whose first is at `place`, counted from the start."""
        return self.table(ids) + self.positions[place : place + ids.shape[1]]

    @torch.no_grad()
    def next_logits(self, caches: list[Cache], h: Tensor) -> Tensor:
        """Logits [B, vocab + special_ids] after the next vectors h [B, n, width], one where caches are not empty."""
        for block, cache in zip(self.blocks, caches):
            h = block(h, None, cache=cache)
        return self.head(self.norm(h[:, -1]))

    def memory(self) -> list[Cache]:
        """Empty caches of a sampling."""
        return [Cache(len(self.prefix_positions) + self.tokens) for _ in self.blocks]

    @torch.no_grad()
    def sample(self, prefix: Tensor, choose: Choose) -> Tensor:
        """Ids [B, tokens] after the prefix [B, M], number i by `choose(logits [B, vocab], i)`, which gives ids [B]."""
        caches, h, ids = self.memory(), self.embed_prefix(prefix), []
        for place in range(self.tokens):
            ids.append(choose(self.next_logits(caches, h)[:, : self.vocab].float(), place))
            if place + 1 < self.tokens:
                h = self.embed(ids[-1][:, None], place + 1)
        return torch.stack(ids, dim=1)


def cross_entropy(logits: Tensor, ids: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy of logits [B, n, K] to ids [B, n], a share `smoothing` of the target spread over all K."""
    return F.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), label_smoothing=smoothing)
