"""The head that a loss trains with a model, from the model's tokens to features of another network."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.nn.embeddings import fixed_positions, register_table
from pipeline.nn.vision_transformer import PreNormBlock, learned_vectors
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks and (self.width % self.heads or self.width % 4):
            raise ValueError(f"a head's blocks of width {self.width} do not divide by 4 and by {self.heads} heads")
        if self.mask and not self.blocks:
            raise ValueError("a head without blocks sees each token alone, and cannot predict a masked one; set blocks")


class FeatureHead(nn.Module):
    """Tokens [B, N, inputs] of a map on `grid` to features [B, N, outputs].

    With blocks: a linear layer to their width, fixed positions, the blocks and a norm. Then linear layers.
    """

    def __init__(self, inputs: int, outputs: int, grid: Sequence[int], shape: HeadShape, bias: bool = True):
        super().__init__()
        width = shape.width if shape.blocks else inputs
        self.embedding = nn.Linear(inputs, width) if shape.blocks else nn.Identity()
        self.mask_token = learned_vectors(1, width) if shape.mask else None
        positions = fixed_positions(grid, width) if shape.blocks else None
        register_table(self, "positions", positions)
        self.blocks = nn.Sequential(*(PreNormBlock(width, shape.heads) for _ in range(shape.blocks)))
        self.norm = nn.LayerNorm(width) if shape.blocks else nn.Identity()
        widths = [width, *[shape.hidden] * (shape.layers - 1), outputs]
        layers = [nn.Linear(low, high, bias=bias) for low, high in zip(widths, widths[1:])]
        self.layers = nn.Sequential(*[part for layer in layers for part in (nn.SiLU(), layer)][1:])

    def forward(self, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """`kept` [B, N] bool says which tokens are given; the others are replaced by the mask token."""
        h = self.embedding(tokens)
        if self.mask_token is not None and kept is not None:
            h = torch.where(kept[:, :, None], h, self.mask_token.to(h.dtype))
        if self.positions is not None:
            h = h + self.positions.to(h.dtype)
        return self.layers(self.norm(self.blocks(h)))
