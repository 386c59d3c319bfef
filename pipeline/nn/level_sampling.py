"""What networks of levels have in common: which ids they read, what each level sees, and sampling level by level."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.code import Condition, stack_ids
from pipeline.nn.causal import Cache
from pipeline.nn.embeddings import register_table
from pipeline.nn.tokens import Choose


@dataclass
class LevelMemory:
    """What a network keeps between the levels of one sampling; made by `LevelSampling.begin`."""

    batch: int
    condition: Condition | None
    caches: list[Cache]
    device: torch.device
    level: int = 0  # the next one

    def step(self, levels: Sequence[int]) -> slice:
        """The places of the next level in the row of all tokens; the memory goes on to the one after it."""
        first = sum(levels[: self.level])
        self.level += 1
        return slice(first, first + levels[self.level - 1])


class LevelSampling:
    """For a network of role `levels`: `forward` reads what `stack_levels` returns, or a memory of `begin`.

    A network that keeps more between levels states its own `memory_class`.
    """

    memory_class = LevelMemory
    blocks: nn.ModuleList

    def number_levels(self, levels: Sequence[int]) -> None:
        """Called by the constructor: `tokens`, and the table `level_numbers` [N]."""
        self.tokens = sum(levels)
        numbers = torch.arange(len(levels), device="cpu").repeat_interleave(torch.tensor(levels, device="cpu"))
        register_table(self, "level_numbers", numbers)

    def stack_levels(self, ids: Tensor) -> Tensor:
        """Ids [B, N] or [B, N, codebooks] as [B, N, codebooks]; ValueError when N is not that of the levels."""
        ids = stack_ids(ids)
        if ids.shape[1] != self.tokens:
            raise ValueError(f"a code of {ids.shape[1]} tokens does not fit levels of {list(self.config.levels)}")
        return ids

    @property
    def seen(self) -> Tensor:
        """[N, N]: whether a token, by row, sees another: those of its own level and of the levels before."""
        return self.level_numbers[:, None] >= self.level_numbers

    def begin(self, batch: int, condition: Condition | None = None, device: torch.device | None = None) -> LevelMemory:
        """The memory of a new sampling of `batch` images, for `advance`; `device` is where the network runs."""
        device = device or self.class_embedding.weight.device
        return self.memory_class(batch, condition, [Cache(self.tokens) for _ in self.blocks], device)

    def advance(self, memory: LevelMemory, ids: Tensor | None, choose: Choose, weights: Tensor | None = None) -> Tensor:
        """The ids [B, n, codebooks] of all tokens of the next level, one network evaluation.

        `ids` [B, m, codebooks] are those of the level before, None before the first; `choose` as for
        `TokenHead.choose`. With `weights` [B, m, codebooks, vocab] that level is a mixture of code vectors instead;
        ValueError, as of `code_vectors`, where a network knows none.
        """
        return self(ids, memory=memory, choose=choose, weights=weights)
