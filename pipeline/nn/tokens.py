"""Tokens of a transformer: ids at its input and output, for any number of codebooks, and tokens of some places."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Logits [B, N, vocab] of a codebook's number -> ids [B, N]; those of all, [B, N, codebooks, vocab] -> [B, N, codebooks]
Choose = Callable[[Tensor, int | slice], Tensor]


HEAD_TABLES = (  # parameters of a `TokenHead` that is named head, with a row for each code of codebook *
    *("head.outputs.*.weight", "head.outputs.*.bias", "head.told.*.table.weight"),
)


class TokenEmbedding(nn.Module):
    """Ids [B, N, codebooks] to [B, N, width]: the sum of one row per codebook.

    With `mask`, row number `vocab` is that of a masked id. A float [B, N, codebooks, vocab] is a mixture of codes (see
    `pipeline.nn.soft_codes`), and its row the mean of theirs.
    """

    def __init__(self, vocab: int, codebooks: int, width: int, mask: bool = False):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(vocab + mask, width) for _ in range(codebooks))

    def forward(self, ids: Tensor) -> Tensor:
        return sum(rows_of(table, ids[:, :, k]) for k, table in enumerate(self.tables))


def rows_of(table: nn.Embedding, ids: Tensor) -> Tensor:
    """The rows [B, N, width] of ids [B, N], or the means of rows of mixtures [B, N, vocab]."""
    return ids @ table.weight[: ids.shape[-1]] if ids.is_floating_point() else table(ids)


class IdConditioning(nn.Module):
    """A token's state conditioned on one of its ids: h + MLP(norm(h + row of the id))."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.table = nn.Embedding(vocab, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, h: Tensor, ids: Tensor) -> Tensor:
        return h + self.down(F.gelu(self.up(self.norm(h + self.table(ids)))))


class SharedTable(nn.Module):
    """Ids [...] to rows of a table [..., width], and states [..., width] to the logits of ids; the last is a mask's."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:-1]) if x.is_floating_point() else F.embedding(x, self.weight)


class TokenHead(nn.Module):
    """States [B, N, width] to the logits of a token's ids, one codebook after another.

    The first is predicted by a linear layer from the state alone; each later one from a state conditioned on the id
    before it, so that the ids of a token need not be independent. With a single codebook it is that linear layer.
    Logits of `special` ids beyond the codebook's come last, and none of these is chosen.
    """

    def __init__(self, vocab: int, codebooks: int, width: int, bias: bool = False, special: int = 0):
        super().__init__()
        self.special = special
        self.outputs = nn.ModuleList(nn.Linear(width, vocab + special, bias=bias) for _ in range(codebooks))
        self.told = nn.ModuleList(IdConditioning(vocab, width) for _ in range(codebooks - 1))

    def forward(self, h: Tensor, ids: Tensor) -> Tensor:
        """Logits [B, N, codebooks, vocab], each codebook's given the ids [B, N, codebooks] of those before it."""
        logits = [self.outputs[0](h)]
        for k, condition in enumerate(self.told):
            h = condition(h, ids[..., k])
            logits.append(self.outputs[k + 1](h))
        return torch.stack(logits, dim=-2)

    def choose(self, h: Tensor, choose: Choose) -> Tensor:
        """Ids [B, N, codebooks], codebook by codebook as `choose(logits, number)` says."""
        chosen = [choose(self.of_codes(self.outputs[0](h)), 0)]
        for k, condition in enumerate(self.told):
            h = condition(h, chosen[k])
            chosen.append(choose(self.of_codes(self.outputs[k + 1](h)), k + 1))
        return torch.stack(chosen, dim=-1)

    def of_codes(self, logits: Tensor) -> Tensor:
        """Logits [..., vocab + special] without those of special ids."""
        return logits[..., : -self.special] if self.special else logits


class TiedTokenHead(TokenHead):
    """A `TokenHead` that also embeds ids, by the tables that its logits are products with."""

    def __init__(self, vocab: int, codebooks: int, width: int):
        super().__init__(vocab, codebooks, width)
        self.outputs = nn.ModuleList(SharedTable(vocab, width) for _ in range(codebooks))

    def embed(self, ids: Tensor) -> Tensor:
        """Ids [B, N, codebooks], those of a mask among them, to [B, N, width]."""
        return sum(table(ids[..., k]) for k, table in enumerate(self.outputs))


def take_places(tokens: Tensor, places: Tensor) -> Tensor:
    """The rows of tokens [B, M, D] at places [B, K] int64: [B, K, D]."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def put_places(tokens: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Tokens [B, M, D] with `rows` [B, K, D] at places [B, K] int64."""
    return tokens.scatter(1, places[..., None].expand(-1, -1, tokens.shape[-1]), rows.to(tokens.dtype))
