"""The head that a loss trains with a model, from the model's tokens to features of another network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.nn.embeddings import fixed_positions, learned_vectors, register_table
from pipeline.nn.grid_transformer import GridTransformer, initialise
from pipeline.nn.vision_transformer import PreNormBlock
from pipeline.ranges import Count, RangedFields, Whole


@dataclass(frozen=True)
class HeadShape(RangedFields):
    """What a recipe states of a head; a linear one is `{layers: 1}`, the default is REPA's (arXiv:2410.06940)."""

    blocks: Whole = 0  # of a vision transformer, before the layers
    width: Count = 768  # of the blocks
    heads: Count = 12  # of the blocks
    layers: Count = 3  # linear ones, with SiLU between them
    hidden: Count = 2048  # channels between them
    mask: bool = False  # a learned vector in place of the tokens that the encoder did not read
    form: Literal["fixed", "rotary"] = "fixed"  # of the blocks, see `FeatureHead`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks and (self.width % self.heads or self.width % 4):
            raise ValueError(f"a head's blocks of width {self.width} do not divide by 4 and by {self.heads} heads")
        if self.mask and not self.blocks:
            raise ValueError("a head without blocks sees each token alone, and cannot predict a masked one; set blocks")


class FeatureHead(nn.Module):
    """Tokens [B, N, inputs] of a map on `grid` to features [B, N, outputs].

    With blocks: a linear layer to their width, positions, the blocks and a norm. Then linear layers. Blocks of the form
    `fixed` have fixed positions, layer norms and GELU; those of the form `rotary`, as RecTok has them
    (Shi-qingyu/RecTok, ee87aaf), learned and rotary positions on a unit square, RMS norms, one more of them before, and
    SwiGLU.
    """

    def __init__(self, inputs: int, outputs: int, grid: Sequence[int], shape: HeadShape, bias: bool = True):
        super().__init__()
        width = shape.width if shape.blocks else inputs
        self.embedding = nn.Linear(inputs, width) if shape.blocks else nn.Identity()
        self.mask_token = learned_vectors(1, width) if shape.mask else None
        fixed = shape.blocks > 0 and shape.form == "fixed"
        register_table(self, "positions", fixed_positions(grid, width) if fixed else None)
        self.transformer = None
        if shape.blocks and not fixed:
            position = "unit_rotary_and_learned"
            self.transformer = GridTransformer(grid, width, shape.blocks, shape.heads, position, "both", "rms")
            initialise(self.transformer)
        self.grid = tuple(grid)
        self.blocks = nn.Sequential(*(PreNormBlock(width, shape.heads) for _ in range(shape.blocks if fixed else 0)))
        self.norm = nn.LayerNorm(width) if fixed else nn.Identity()
        widths = [width, *[shape.hidden] * (shape.layers - 1), outputs]
        layers = [nn.Linear(low, high, bias=bias) for low, high in zip(widths, widths[1:])]
        self.layers = nn.Sequential(*[part for layer in layers for part in (nn.SiLU(), layer)][1:])

    def forward(self, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """`kept` [B, N] bool says which tokens are given; the others are replaced by the mask token."""
        h = self.embedding(tokens)
        if self.mask_token is not None and kept is not None:
            h = torch.where(kept[:, :, None], h, self.mask_token.to(h.dtype))
        if self.transformer is not None:
            return self.layers(self.transformer(h, self.grid))
        if self.positions is not None:
            h = h + self.positions.to(h.dtype)
        return self.layers(self.norm(self.blocks(h)))
