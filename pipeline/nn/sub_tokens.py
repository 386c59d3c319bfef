"""Several ids of one token, one after another, by a small causal transformer over them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.nn.blocks import Rotary
from pipeline.nn.causal import EVERYTHING, BlockShape, Cache, CausalBlock, ModulatedNorm, learned_norm
from pipeline.nn.tokens import Choose, TokenEmbedding, TokenHead, rows_of


class JoinedEmbedding(TokenEmbedding):
    """Ids [B, N, codebooks] to [B, N, width]: a row per codebook, side by side, and a linear layer."""

    def __init__(self, vocab: int, codebooks: int, width: int):
        super().__init__(vocab, codebooks, width)
        self.joined = nn.Linear(codebooks * width, width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.joined(torch.cat([rows_of(table, ids[:, :, k]) for k, table in enumerate(self.tables)], dim=-1))


class SubTokenHead(nn.Module):
    """States [B, N, width] to the logits of a token's ids, by `depth` causal blocks over these ids.

    The sequence of a token is its state and the rows of its ids but the last, from the tables of the network's
    embedding; place k of it predicts id k. FAR, the generator of FQGAN (Bai et al., arXiv:2411.16681).
    """

    def __init__(self, vocab: int, codebooks: int, depth: int, shape: BlockShape):
        super().__init__()
        self.blocks = nn.ModuleList(CausalBlock(shape) for _ in range(depth))
        self.norm = learned_norm(shape.norm, shape.width, shape.epsilon)
        self.outputs = nn.ModuleList(nn.Linear(shape.width, vocab, bias=shape.bias) for _ in range(codebooks))

    def forward(
        self, h: Tensor, ids: Tensor, tables: Sequence[nn.Module], rotary: Rotary | None, dropout: Draws | None = None
    ) -> Tensor:
        """Logits [B, N, codebooks, vocab], each given the ids [B, N, codebooks] before it.

        `rotary` has a row for each id.
        """
        told = [table(ids[..., k]) for k, table in enumerate(tables[: len(self.outputs) - 1])]
        x = torch.stack([h, *told], dim=2).flatten(0, 1)  # [B N, codebooks, width]
        draws = None if dropout is None else StateDraws(dropout, h.shape[1])
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, block.masks(draws, x.shape[1], f"blocks.{i}"))
        x = self.norm(x).unflatten(0, h.shape[:2])
        return torch.stack([output(x[:, :, k]) for k, output in enumerate(self.outputs)], dim=-2)

    def choose(self, h: Tensor, choose: Choose, tables: Sequence[nn.Module], rotary: Rotary | None) -> Tensor:
        """Ids [B, 1, codebooks] of one token, of its state h [B, 1, width], as `choose(logits, number)` says."""
        caches, chosen = [Cache(len(self.outputs)) for _ in self.blocks], []
        for k, output in enumerate(self.outputs):
            here = None if rotary is None else tuple(table[..., k : k + 1, :] for table in rotary)
            x = h if k == 0 else tables[k - 1](chosen[-1])
            for block, cache in zip(self.blocks, caches):
                x = block(x, here, EVERYTHING, cache)
            chosen.append(choose(output(self.norm(x)), k))
        return torch.stack(chosen, dim=-1)


class StateDraws(Draws):
    """Draws of `places` rows an image, the first image's first, as one batch."""

    def __init__(self, draws: Draws, places: int):
        self.draws, self.places, self.step = draws, places, draws.step

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.draws.normal(f"head.{name}", (self.places, *shape)).flatten(0, 1)

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        return self.draws.uniform(f"head.{name}", (self.places, *shape)).flatten(0, 1)

    def keep_mask(self, name: str, shape: tuple[int, ...], rate: float) -> Tensor:
        return self.draws.keep_mask(f"head.{name}", (self.places, *shape), rate).flatten(0, 1)


class PredictsIds:
    """A network's first and last layers: a `SubTokenHead` and its embedding with `head_depth`, else a `TokenHead`."""

    def make_token_embedding(self) -> TokenEmbedding:
        c = self.config
        return (JoinedEmbedding if c.head_depth else TokenEmbedding)(c.vocab, c.codebooks, c.width)

    def make_last_norm(self) -> nn.Module:
        """Of the states; none where blocks end in norms, or a head of blocks has one after them."""
        c = self.config
        if c.modulated:
            return ModulatedNorm(c.norm, c.width, c.norm_epsilon)
        return nn.Identity() if c.head_depth or c.post_norm else learned_norm(c.norm, c.width, c.norm_epsilon)

    def make_head(self, shape: BlockShape) -> SubTokenHead | TokenHead:
        c = self.config
        if c.head_depth:
            return SubTokenHead(c.vocab, c.codebooks, c.head_depth, shape._replace(crossed=False))
        return TokenHead(c.vocab, c.codebooks, c.width, c.bias and not c.special_ids, c.special_ids)

    def predict_ids(self, states: Tensor, ids: Tensor, dropout: Draws | None) -> Tensor:
        """Logits [B, N, codebooks, vocab] of states [B, N, width], each given the ids of its token before it."""
        if not self.config.head_depth:
            return self.head(states, ids)
        inputs = (states, ids, *self.told(), dropout)
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(self.head, *inputs)
        return self.head(*inputs)

    def choose_ids(self, states: Tensor, choose: Choose) -> Tensor:
        """Ids [B, 1, codebooks] of states [B, 1, width]."""
        return self.head.choose(states, choose, *(self.told() if self.config.head_depth else ()))

    def told(self) -> tuple[Sequence[nn.Module], Rotary | None]:
        """What a head of blocks reads besides states and ids: the tables of ids, and a rotary row for each of them.

        As in the released code these are the rows of the sequence's positions from the class on.
        """
        rows = slice(self.before - 1, self.before - 1 + self.config.codebooks)
        rotary = None if self.cosines is None else (self.cosines[rows], self.sines[rows])
        return self.token_embedding.tables, rotary


def check_head(arguments: Arguments) -> None:
    """ValueError where a head of blocks does not fit the other arguments of its network."""
    if arguments.head_depth and math.prod(arguments.grid) < arguments.codebooks - 1:
        raise ValueError(f"a head over {arguments.codebooks} ids needs as many positions; {arguments.grid} has fewer")
    if arguments.head_depth and arguments.special_ids:
        raise ValueError("special_ids: a head of blocks has none; set head_depth to 0, or leave them out")
