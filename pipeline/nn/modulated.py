"""What transformers on noisy codes share: positions, adaLN-Zero initialisation and the pass through the blocks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import Tensor, nn

from pipeline.nn.blocks import ModulatedBlock, ModulatedHead, Rotary, silence_captions
from pipeline.nn.class_token import ClassTokenLayers
from pipeline.nn.embeddings import fixed_positions, register_table, rotary_tables
from pipeline.nn.text import Caption, join_caption

Position = Literal["fixed", "learned", "rotary", "rotary_and_fixed"]


@dataclass(frozen=True)
class Patches:
    """The grid of a code's patches, and the grid that their fixed and rotary positions are counted on."""

    grid: list[int]
    counted_on: list[int] | None = None  # None: its own

    @classmethod
    def of(cls, grid: Sequence[int], position_grid: Sequence[int] | None, patch_size: int) -> "Patches":
        """Those of codes on `grid`, whose positions are counted on `position_grid`."""
        counted_on = None if position_grid is None else [size // patch_size for size in position_grid]
        return cls([size // patch_size for size in grid], counted_on)


class ModulatedTransformer:
    """Methods for a network made of `ModulatedBlock`s; they keep their parameters in the network itself."""

    gradient_checkpointing = False

    def enable_cache(self, config: object) -> None:
        """diffusers' caches (`FirstBlockCacheConfig`, ...), once their registry knows these networks' block."""
        TransformerBlockRegistry.register(ModulatedBlock, TransformerBlockMetadata(return_hidden_states_index=0))
        super().enable_cache(config)

    def set_positions(self, patches: Patches, position: Position, width: int, heads: int) -> None:
        """`positions` [N, width] to add at the input and `cosines`, `sines` [N, width / heads] for queries and keys.

        Those that `position` does not name are None.
        """
        fixed = fixed_positions(patches.grid, width, patches.counted_on) if "fixed" in position else None
        register_table(self, "positions", fixed)
        if position == "learned":
            del self.positions
            self.positions = nn.Parameter(torch.zeros(math.prod(patches.grid), width))
        self.set_rotary(patches, width // heads if "rotary" in position else 0)

    def set_rotary(self, patches: Patches, head_width: int, prefix: str = "") -> None:
        """Rotary tables for heads of this width as buffers; None for a width of 0."""
        tables = rotary_tables(patches.grid, head_width, patches.counted_on) if head_width else (None, None)
        for name, table in zip(("cosines", "sines"), tables):
            register_table(self, prefix + name, table)

    def add_positions(self, hidden_states: Tensor) -> Tensor:
        """hidden_states [B, N, width] plus their positions, where these are added."""
        if self.positions is None:
            return hidden_states
        return hidden_states + self.positions.to(hidden_states.dtype)  # a table made at loading is float32

    def run_blocks(
        self,
        blocks: Iterable[nn.Module],
        hidden_states: Tensor,
        condition: Tensor,
        rotary: Rotary | None,
        taps: Sequence[int] = (),
        caption: Caption | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """hidden_states [B, N, width] after all blocks, and after those that `taps` name (1 is the first), in order.

        The blocks attend to the caption, of which no places are returned.
        """
        h, rotary, attended = join_caption(hidden_states, rotary, caption)
        count, tapped = hidden_states.shape[1], {}
        for number, block in enumerate(blocks, start=1):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                h = self._gradient_checkpointing_func(block, h, condition, rotary, attended)
            else:
                h = block(h, condition, rotary, attended)
            if number in taps:
                tapped[number] = h[:, :count]
        return h[:, :count], [tapped[number] for number in taps]

    @torch.no_grad()
    def initialise(self, xavier: Sequence[nn.Linear] | None = None) -> None:
        """adaLN-Zero as published: Xavier linear layers, normal embeddings, gates and the last layer at zero.

        Only the layers in `xavier` are changed where it is given; others stay as torch makes them.
        """
        for module in self.modules() if xavier is None else xavier:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        normal = [self.time_embedding.up.weight, self.time_embedding.down.weight]
        normal += [] if self.label_embedding is None else [self.label_embedding.weight]
        normal += [self.positions] if isinstance(self.positions, nn.Parameter) else []
        for weight in normal:
            nn.init.normal_(weight, std=0.02)
        for module in self.modules():
            if isinstance(module, (ModulatedBlock, ModulatedHead)):
                nn.init.zeros_(module.modulation.weight), nn.init.zeros_(module.modulation.bias)
            if isinstance(module, (ModulatedHead, ClassTokenLayers)):
                nn.init.zeros_(module.linear.weight), nn.init.zeros_(module.linear.bias)
        silence_captions(self)


def check_patches(grid: Sequence[int], patch_size: int) -> None:
    """ValueError where patches do not divide the grid."""
    if any(size % patch_size for size in grid):
        raise ValueError(f"patch_size {patch_size} does not divide the grid {list(grid)}; use 1 or another tokenizer")


def check_position(grid: Sequence[int], position: Position, width: int, heads: int) -> None:
    """ValueError where tables of positions cannot be made for this width."""
    multiple = 2 * len(grid)
    if "fixed" in position and width % multiple:
        raise ValueError(f"position={position} needs a width divisible by {multiple}, not {width}")
    if "rotary" in position and width // heads % multiple:
        raise ValueError(f"position={position} needs width / heads divisible by {multiple}, not {width // heads}")


def check_count(hidden_states: Tensor, grid: Sequence[int]) -> None:
    """ValueError where hidden_states [B, N, C] are not on the grid."""
    if hidden_states.shape[1] != math.prod(grid):
        raise ValueError(f"a code of {hidden_states.shape[1]} tokens does not fit the network's grid {list(grid)}")
