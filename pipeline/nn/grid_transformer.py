"""Transformers on the patches of an image: to a code with one token per position, and from it back to an image."""

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.nn.blocks import FeedForward, Norm, Rotary, SelfAttention, make_feed_forward, make_norm
from pipeline.nn.convolution import Tower
from pipeline.nn.embeddings import fixed_positions, register_table, rotary_tables, unit_rotary_tables
from pipeline.nn.patch_heads import Grid, Head, make_head

Position = Literal[
    "rotary",
    "rotary_sequence",
    "learned",
    "fixed",
    "rotary_and_learned",
    "rotary_and_fixed",
    "unit_rotary",
    "unit_rotary_and_learned",
]
Initialisation = Literal["xavier", "truncated"]  # of matrices and kernels
OuterNorms = Literal["none", "last", "both"]  # outside of the blocks: after the last one, and before the first


class PlainBlock(nn.Module):
    """h = x + s1 attention(norm1(x)), then h + s2 feed_forward(norm2(h)), for x [B, N, width].

    `parallel`: x + s1 (attention(norm1(x)) + feed_forward(norm1(x))) (Dehghani et al., arXiv:2302.05442). The scales
    [width] are LayerScale (Touvron et al., arXiv:2103.17239), initialised with `layer_scale`; None leaves them out.
    Between the linear layers of the feed-forward layer there are `hidden` channels, by default as many as `ratio` says.
    Without `bias` no linear layer has one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        norm: Norm = "layer",
        feed_forward: FeedForward = "swiglu",
        ratio: float = 4.0,
        query_key_norm: bool = False,
        parallel: bool = False,
        layer_scale: float | None = None,
        hidden: int | None = None,
        bias: bool = True,
    ):
        super().__init__()
        self.norm1 = make_norm(norm, width, affine=True)
        self.attention = SelfAttention(width, heads, query_key_norm, bias)
        self.norm2 = None if parallel else make_norm(norm, width, affine=True)
        self.feed_forward = make_feed_forward(feed_forward, width, ratio, hidden, bias)
        self.scale1 = make_layer_scale(width, layer_scale)
        self.scale2 = None if parallel else make_layer_scale(width, layer_scale)

    def forward(self, hidden_states: Tensor, rotary: Rotary | None = None) -> Tensor:
        h = self.norm1(hidden_states)
        if self.norm2 is None:
            return hidden_states + apply_layer_scale(self.attention(h, rotary) + self.feed_forward(h), self.scale1)
        h = hidden_states + apply_layer_scale(self.attention(h, rotary), self.scale1)
        return h + apply_layer_scale(self.feed_forward(self.norm2(h)), self.scale2)


class GridTransformer(Tower):
    """Plain blocks on tokens [B, N, width], each with its position on a grid; the last norm after them.

    `position`: `rotary` in two axes; `rotary_sequence` in one, along the rows one after the other (ViTok's);
    `unit_rotary` as in RecTok's released code, see `pipeline.nn.embeddings.unit_rotary_tables`; `learned` or `fixed`
    (sine-cosine) vectors added at the input; or two of these. All but the learned ones are there for any grid.
    `options` are those of `PlainBlock`.
    """

    def __init__(
        self,
        grid: Grid,
        width: int,
        depth: int,
        heads: int,
        position: Position = "rotary",
        outer_norms: OuterNorms = "last",
        norm: Norm = "layer",
        **options: object,
    ):
        super().__init__()
        self.grid, self.width, self.head_width, self.position = tuple(grid), width, width // heads, position
        self.positions = nn.Parameter(torch.empty(grid[0] * grid[1], width)) if "learned" in position else None
        self.norm_in = make_norm(norm, width, affine=True) if outer_norms == "both" else nn.Identity()
        self.blocks = nn.ModuleList(PlainBlock(width, heads, norm, **options) for _ in range(depth))
        self.norm_out = nn.Identity() if outer_norms == "none" else make_norm(norm, width, affine=True)
        for name, table in self.tables(self.grid).items():
            register_table(self, name, table)

    def tables(self, grid: Grid) -> dict[str, Tensor | None]:
        """The fixed tables of positions of a grid, [N, width] and twice [N, D]; None for those not in use."""
        cosines = sines = fixed = None
        if "rotary" in self.position:
            axes = (grid[0] * grid[1],) if self.position == "rotary_sequence" else grid
            make = unit_rotary_tables if "unit" in self.position else rotary_tables
            cosines, sines = make(axes, self.head_width)
        if "fixed" in self.position:
            fixed = fixed_positions(grid, self.width)
        return {"fixed": fixed, "cosines": cosines, "sines": sines}

    def forward(self, h: Tensor, grid: Grid, kept: Tensor | None = None) -> Tensor:
        """h [B, N, width] of all positions of `grid` to [B, N, width]; with `kept` [B, K], of those positions alone.

        Raises ValueError for a grid of which no positions have been learned.
        """
        trained = tuple(grid) == self.grid
        if self.positions is not None and not trained:
            sides = ["x".join(map(str, sides)) for sides in (self.grid, grid)]
            raise ValueError(f"positions are learned on a grid of {sides[0]}, not {sides[1]}; set position=rotary")
        tables = {"fixed": self.fixed, "cosines": self.cosines, "sines": self.sines} if trained else self.tables(grid)
        for vectors in (self.positions, tables["fixed"]):
            if vectors is not None:
                h = h + vectors.to(h)
        rotary = None
        if tables["cosines"] is not None:
            rotary = tuple(tables[name].to(h.device) for name in ("cosines", "sines"))
        if kept is not None:
            h = gather_positions(h, kept)
            rotary = rotary and tuple(table[kept][:, None] for table in rotary)  # [B, 1, K, D]
        if rotary is not None and "unit" in self.position:
            rotary = (*rotary, False)
        h = self.norm_in(h)
        for block in self.blocks:
            h = self.run(block, h, rotary)
        return self.norm_out(h)


class PatchEncoder(nn.Module):
    """Images [B, channels, H, W] to what the bottleneck reads, [B, N, outputs], one token per patch."""

    def __init__(self, transformer: GridTransformer, patch_size: int, outputs: int, channels: int = 3):
        super().__init__()
        self.patch_embedding = nn.Conv2d(channels, transformer.width, patch_size, stride=patch_size)
        self.transformer = transformer
        self.projection = nn.Linear(transformer.width, outputs)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """`kept` [B, K] are the positions, ascending, of the patches that are read; the others have no influence."""
        maps = self.patch_embedding(images)
        return self.projection(self.transformer(maps.flatten(2).transpose(1, 2), maps.shape[2:], kept))


class PatchDecoder(nn.Module):
    """A code [B, N, inputs] to images [B, channels, h p, w p]; with `masks`, it may be of some positions alone."""

    def __init__(
        self,
        transformer: GridTransformer,
        patch_size: int,
        inputs: int,
        head: Head,
        masks: bool = False,
        channels: int = 3,
    ):
        super().__init__()
        self.embedding = nn.Linear(inputs, transformer.width)
        self.mask_token = nn.Parameter(torch.empty(transformer.width)) if masks else None
        self.transformer = transformer
        self.head = make_head(head, transformer.width, patch_size, channels)

    def forward(self, z: Tensor, grid: Grid, kept: Tensor | None = None) -> Tensor:
        """`kept` [B, N] bool says which positions of z are of the code; the others begin as the mask token."""
        h = self.embedding(z)
        if self.mask_token is not None:
            present = torch.ones_like(z[..., :1], dtype=torch.bool) if kept is None else kept[..., None]
            h = torch.where(present, h, self.mask_token.to(h))  # in every graph, as distributed training wants it
        return self.head(self.transformer(h, grid), grid)


def initialise(module: nn.Module, kind: Initialisation = "xavier") -> None:
    """Xavier matrices and kernels (of one patch as one vector), biases at zero, learned vectors of length about one.

    As in ViTok's public implementation; `truncated` is RecTok's: matrices and kernels of a truncated normal law with
    standard deviation 0.02.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            with torch.no_grad():
                if kind == "truncated":
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                else:
                    nn.init.xavier_uniform_(layer.weight.flatten(1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for name in ("positions", "mask_token"):
            if isinstance(vectors := getattr(layer, name, None), nn.Parameter):
                nn.init.normal_(vectors, std=vectors.shape[-1] ** -0.5)


def make_layer_scale(width: int, start: float | None) -> nn.Parameter | None:
    return None if start is None else nn.Parameter(torch.full((width,), start))


def apply_layer_scale(branch: Tensor, by: Tensor | None) -> Tensor:
    return branch if by is None else branch * by


def gather_positions(h: Tensor, positions: Tensor) -> Tensor:
    """h [B, N, C] at positions [B, K], as [B, K, C]."""
    return h.gather(1, positions[..., None].expand(-1, -1, h.shape[2]))
