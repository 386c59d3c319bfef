"""Ids as the store of codes holds them: in two bytes or four, and eight to a byte where each is a bit."""

import torch
from torch import Tensor

from pipeline.code import LatentSpec, plain_ids

PACKED = "packed_ids"  # the name of ids that are bits, among the tensors of a shard


def bytes_of_ids(spec: LatentSpec) -> int:
    """Of all ids of one image."""
    count = spec.tokens * spec.codebooks
    return -(-count // 8) if spec.vocab == 2 else count * (2 if spec.vocab <= 2**16 else 4)


def store_ids(ids: Tensor, spec: LatentSpec) -> dict[str, Tensor]:
    """Ids [rows, views, N] or [rows, views, N, codebooks] under the name and in the type that they are stored in."""
    if spec.vocab != 2:
        return {"ids": ids.to(torch.uint16 if spec.vocab <= 2**16 else torch.int32)}
    bits = torch.nn.functional.pad(ids.flatten(2), (0, -spec.tokens * spec.codebooks % 8)).unflatten(2, (-1, 8))
    return {PACKED: (bits << torch.arange(8)).sum(dim=-1).to(torch.uint8)}


def read_packed(packed: Tensor, spec: LatentSpec) -> Tensor:
    """The ids [B, N] or [B, N, codebooks] int64 of packed ones [B, bytes]."""
    bits = (packed[..., None].long() >> torch.arange(8)) & 1
    return plain_ids(bits.flatten(1)[:, : spec.tokens * spec.codebooks].unflatten(1, (spec.tokens, spec.codebooks)))
