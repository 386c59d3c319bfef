"""What causal networks have in common when they sample: a memory of the tokens so far, and a step to the next."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.nn.causal import Cache
from pipeline.nn.tokens import Choose


@dataclass
class TokenMemory:
    """What a network keeps between the tokens of one sampling; made by its `begin`."""

    batch: int
    condition: Condition | None
    caches: list[Cache]
    device: torch.device
    length: int = 0  # places read so far, those before the tokens counted

    def step(self, places: int) -> slice:
        """The next `places` of the sequence; the memory goes on to those after them."""
        self.length += places
        return slice(self.length - places, self.length)

    def narrow(self, rows: int) -> None:
        """Continue with the first `rows` of the batch alone."""
        self.batch = rows
        for cache in self.caches:
            cache.narrow(rows)


class TokenSampling:
    """For a network of role `causal`, whose `forward` also takes a memory, and then returns the next token's ids."""

    def advance(self, memory: TokenMemory, ids: Tensor | None, choose: Choose) -> Tensor:
        """The ids [B, codebooks] of the next token, one network evaluation; `choose` as for `TokenHead.choose`.

        `ids` [B, codebooks] are those of the token before, from which the sequence continues; None before the first.
        """
        return self(ids, memory=memory, choose=choose)


class RowSampling(TokenSampling):
    """The same of a network that knows no order but row by row; one that keeps more states its own `memory_class`."""

    memory_class = TokenMemory
    blocks: nn.ModuleList
    capacity: int  # of the caches, in places

    def begin(
        self,
        batch: int,
        condition: Condition | None = None,
        order: None = None,
        device: torch.device | None = None,
    ) -> TokenMemory:
        """The memory of a new sampling of `batch` images, for `advance`; ValueError for an `order`.

        `device` is where the network runs: where its weights are, unless they are offloaded between evaluations.
        """
        check_no_order(order)
        device = device or self.class_embedding.weight.device
        return self.memory_class(batch, condition, [Cache(self.capacity) for _ in self.blocks], device)


def check_no_order(order: Tensor | None) -> None:
    """ValueError where a network that predicts tokens row by row is given another order."""
    if order is not None:
        raise ValueError("this network predicts tokens row by row; take another objective, or a causal_transformer")
