"""The bits of ids: any codebook of 2^b entries is b bits, the highest first, and one of two is a bit itself."""

import torch
from torch import Tensor, nn

from pipeline.nn.embeddings import register_table
from pipeline.nn.tokens import Choose

LARGEST = 2**18  # of a codebook whose entries' logits are all written out: LFQ's


def bits_of(vocab: int) -> int:
    """Bits of an id; ValueError where the size of the codebook is no power of two."""
    if vocab < 2 or vocab & (vocab - 1):
        raise ValueError(f"bits are of codebooks of 2, 4, 8, ... ids, and this one has {vocab}; take another network")
    return vocab.bit_length() - 1


def check_bits(vocab: int) -> None:
    """ValueError where the logits of all entries of a codebook cannot be had from those of its bits."""
    bits_of(vocab)
    if vocab > LARGEST:
        raise ValueError(
            f"the logits of {vocab} ids are too many to write out; use codebooks of {LARGEST} ids or fewer"
        )


def ids_to_bits(ids: Tensor, vocab: int) -> Tensor:
    """Ids [B, N, codebooks] to their bits [B, N, codebooks * bits_of(vocab)], int64."""
    shifts = torch.arange(bits_of(vocab) - 1, -1, -1, device=ids.device)
    return (ids[..., None] >> shifts & 1).flatten(-2)


def bits_to_ids(bits: Tensor, vocab: int) -> Tensor:
    """The inverse of `ids_to_bits`."""
    shifts = torch.arange(bits_of(vocab) - 1, -1, -1, device=bits.device)
    return (bits.long().unflatten(-1, (-1, len(shifts))) << shifts).sum(dim=-1)


class BitHead(nn.Module):
    """States [B, N, width] to the logits of a token's ids, whose bits are independent of one another.

    A logit per bit is that of the bit being 1; an id has the sum of those of its bits that are 1, so that its share by
    softmax is the product of its bits' shares, and cross-entropy is the sum of the bits' binary cross-entropies.
    """

    def __init__(self, vocab: int, codebooks: int, width: int):
        super().__init__()
        self.codebooks, each = codebooks, bits_of(vocab)
        self.linear = nn.Linear(width, codebooks * each)
        ids = torch.arange(vocab, device="cpu")
        register_table(self, "table", ids_to_bits(ids[:, None], vocab).T.float())  # [bits, vocab]

    def forward(self, h: Tensor) -> Tensor:
        """Logits [B, N, codebooks, vocab]."""
        return self.linear(h).unflatten(-1, (self.codebooks, -1)) @ self.table.to(h.dtype)

    def choose(self, h: Tensor, choose: Choose) -> Tensor:
        """Ids [B, N, codebooks], those of all codebooks chosen at once."""
        return choose(self(h), slice(None))
