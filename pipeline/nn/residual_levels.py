"""Transformers of ResTok: levels of a map and of tokens, each of which holds what coarser ones leave over."""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.blocks import Rotary, SelfAttention
from pipeline.nn.convolution import Tower, match_memory_format
from pipeline.nn.embeddings import axis_angles, coordinates, learned_vectors, register_table
from pipeline.nn.grid_transformer import initialise, make_layer_scale
from pipeline.nn.image_size import Sides

EPSILON = 1e-5  # of every norm, torch's own


class KeylessBias(nn.Linear):
    """A projection [B, N, width] to queries, keys and values in a row, with biases of queries and values alone."""

    def __init__(self, width: int):
        super().__init__(width, 3 * width, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.value_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        return F.linear(x, self.weight, bias.to(self.weight.dtype))


class ResidualLevelBlock(nn.Module):
    """h = x + s1 attention(norm1(x)), then h + s2 feed_forward(norm2(h)): [B, N, width] to the same.

    Layer norms, also of queries and keys; four times the width with exact GELU; the scales are learned, from 1. Where
    the first `halved` tokens are a level of a map, a coarser level is put before them between the branches (`coarser`):
    [B, halved / 2 + N, width].
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attention = SelfAttention(width, heads, "layer")
        self.attention.qkv = KeylessBias(width)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale1, self.scale2 = make_layer_scale(width, 1.0), make_layer_scale(width, 1.0)

    def forward(self, hidden_states: Tensor, rotary: Rotary, seen: Tensor | None = None, halved: int = 0) -> Tensor:
        """`seen` [N, N] bool says which tokens each one sees; None: all."""
        h = hidden_states + self.scale1 * self.attention(self.norm1(hidden_states), rotary, mask=seen)
        if halved:
            h = torch.cat([*coarser(h[:, :halved]), h[:, halved:]], dim=1)
        return h + self.scale2 * self.down(F.gelu(self.up(self.norm2(h))))


class LevelEncoder(Tower):
    """Maps [B, inputs, h, w] to the tokens of all `blocks`, [B, sum of blocks, outputs].

    The tokens are not learned: those of a block begin as means over parts of the map, of what the blocks before it
    leave over (`residual_pools`). `image_levels` are the levels of the map, fine to coarse: in the layers `places` a
    new one is made of every second token of the coarsest one, a row after the other, which keeps what that leaves over;
    so a level has half the columns of the one before. The sequence is [coarsest level | ... | map | tokens], and a
    token sees its own level, or block, and those before it. Rotary positions have two axes: a level's are its rows and
    columns, after as many places as there are tokens before it, and the tokens go on along the diagonal.

    With `interleaved`, as in `pipeline.nn.vision_transformer.LatentEncoder`, every output reads a part of the channels
    of all tokens. `summary` passes on the mean of the coarsest level, for a loss that reads it. ResTok
    (arXiv:2601.03955), in the form of Kwai-Kolors/ResTok.
    """

    def __init__(
        self,
        inputs: int,
        grid: Sides,
        blocks: Sequence[int],
        image_levels: int,
        width: int,
        depth: int,
        heads: int,
        outputs: int,
        interleaved: bool = False,
    ):
        super().__init__()
        self.token_blocks, self.interleaved = tuple(blocks), interleaved
        self.places = [i * depth // image_levels - 1 for i in range(1, image_levels)]
        self.embedding = nn.Linear(inputs, width)
        self.level_embedding = learned_vectors(image_levels, width)
        self.token_level_embedding = learned_vectors(len(blocks), width)
        self.norm_in = nn.LayerNorm(width, eps=EPSILON)
        self.blocks = nn.ModuleList(ResidualLevelBlock(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, eps=EPSILON)
        self.exits = nn.ModuleList(nn.Linear(width, outputs) for _ in blocks)
        self.summary = MeanToken()
        for stage in range(image_levels):
            levels = [(grid[0], grid[1] >> i) for i in range(stage, -1, -1)]
            counts = [math.prod(level) for level in levels]
            tables = rotary_of_levels([*levels, sum(blocks)], width // heads)
            register_table(self, f"cosines_{stage}", tables[0])
            register_table(self, f"sines_{stage}", tables[1])
            register_table(self, f"seen_{stage}", blockwise([*counts, *blocks]))
        self.sizes = counts  # of the map's levels, coarse to fine
        initialise(self)

    def forward(self, maps: Tensor) -> Tensor:
        levels, h = self.states(maps)
        self.summary(levels[0])
        h = self.norm_out(h)
        if self.interleaved:
            h = h.flatten(1).unflatten(1, (h.shape[2], h.shape[1])).mT
        return torch.cat([leave(part) for leave, part in zip(self.exits, h.split(self.token_blocks, dim=1))], dim=1)

    def states(self, maps: Tensor) -> tuple[list[Tensor], Tensor]:
        """The map's levels, coarse to fine, and the tokens, each [B, n, width] after all blocks, before the last
        norm."""
        rows = self.embedding(maps.flatten(2).mT)
        pools = residual_pools(rows.mT.unflatten(2, maps.shape[2:]), self.token_blocks)
        pools = [pool + level for pool, level in zip(pools, self.token_level_embedding)]
        h, stage = self.norm_in(torch.cat([rows + self.level_embedding[0], *pools], dim=1)), 0
        for i, block in enumerate(self.blocks):
            rotary = getattr(self, f"cosines_{stage}"), getattr(self, f"sines_{stage}")
            coarsest = self.sizes[-1 - stage]
            h = self.run(block, h, rotary, getattr(self, f"seen_{stage}"), coarsest if i in self.places else 0)
            if i in self.places:
                stage += 1
                made = coarsest // 2
                h = torch.cat([h[:, :made] + self.level_embedding[stage], h[:, made:]], dim=1)
        *levels, tokens = h.split([*self.sizes, sum(self.token_blocks)], dim=1)
        return levels, tokens


class LevelDecoder(Tower):
    """Tokens of all `blocks` [B, N, inputs], or the first few, to a map [B, outputs, h, w].

    Tokens that are left out are one learned vector. The sequence is [tokens | map], in which everything sees all;
    tokens are on the diagonal of the rotary positions, and the map after them. With `feature_pass` there is a second
    pass, of places that begin as another learned vector, whose states `feature_map` passes on as a map
    [B, width, h, w], for a loss that compares them with features of a vision model.
    """

    def __init__(
        self,
        inputs: int,
        grid: Sides,
        blocks: Sequence[int],
        width: int,
        depth: int,
        heads: int,
        outputs: int,
        feature_pass: bool = False,
    ):
        super().__init__()
        self.grid, self.token_blocks = tuple(grid), tuple(blocks)
        self.dropped_token = learned_vectors(1, inputs)
        self.entries = nn.ModuleList(nn.Linear(inputs, width) for _ in blocks)
        self.token_level_embedding = learned_vectors(len(blocks), width)
        self.mask_token = learned_vectors(1, width)
        self.feature_token = learned_vectors(1, width) if feature_pass else None
        self.norm_in = nn.LayerNorm(width, eps=EPSILON)
        self.blocks = nn.ModuleList(ResidualLevelBlock(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, eps=EPSILON)
        self.feature_map = nn.Identity()
        self.projection = nn.Linear(width, outputs)
        for name, table in zip(("cosines", "sines"), rotary_of_levels([sum(blocks), self.grid], width // heads)):
            register_table(self, name, table)
        initialise(self)

    def forward(self, z: Tensor, dropped: Tensor | None = None) -> Tensor:
        """`dropped` [B, n] bool says which of z [B, n, inputs] are left out besides those that follow."""
        h = self.norm_out(self.states(self.complete(z, dropped), self.mask_token))
        return match_memory_format(self.as_map(self.projection(h)), self.projection.weight)

    def pass_features(self, z: Tensor, dropped: Tensor | None = None) -> Tensor:
        """The second pass, [B, width, h, w]; ValueError of a decoder without it."""
        if self.feature_token is None:
            raise ValueError("this decoder has no second pass; build it with feature_pass=true")
        return self.feature_map(self.as_map(self.states(self.complete(z, dropped), self.feature_token)))

    def complete(self, z: Tensor, dropped: Tensor | None = None) -> Tensor:
        """z [B, n, inputs] as [B, N, inputs], with the learned vector where there is no token."""
        if dropped is None:
            dropped = torch.zeros_like(z[..., 0], dtype=torch.bool)
        missing = sum(self.token_blocks) - z.shape[1]
        z, dropped = F.pad(z, (0, 0, 0, missing)), F.pad(dropped, (0, missing), value=True)
        return torch.where(dropped[..., None], self.dropped_token.to(z), z)

    def states(self, z: Tensor, token: Tensor) -> Tensor:
        """States [B, h w, width] of places that begin as `token` [1, width], before the last norm."""
        parts = zip(self.entries, self.token_level_embedding, z.split(self.token_blocks, dim=1))
        h = [entry(part) + level for entry, level, part in parts]
        places = math.prod(self.grid)
        h = self.norm_in(torch.cat([*h, token.expand(len(z), places, -1).to(h[0])], dim=1))
        for block in self.blocks:
            h = self.run(block, h, (self.cosines, self.sines))
        return h[:, -places:]

    def as_map(self, rows: Tensor) -> Tensor:
        return rows.mT.unflatten(2, self.grid)


class MeanToken(nn.Module):
    """The mean of tokens [B, n, width] as a map of one place, [B, width, 1, 1]."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)[:, :, None, None]


def doubling_blocks(count: int) -> list[int]:
    """Tokens of so many blocks, each as large as all before it: 1, 1, 2, 4, 8, ..."""
    return [1 if i == 0 else 2 ** (i - 1) for i in range(count)]


def block_grid(tokens: int) -> Sides:
    """Rows and columns of the parts of a map that a block of 1, 2, 4, ... tokens begins as the means of."""
    power = tokens.bit_length() - 1
    return 2 ** (power // 2), 2 ** ((power + 1) // 2)


def residual_pools(maps: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """Means over parts of maps [B, C, h, w], one [B, n, C] for each block, of what the blocks before it leave over."""
    pools, rest = [], maps
    for tokens in blocks:
        pool = F.adaptive_avg_pool2d(rest, block_grid(tokens))
        rest = rest - F.interpolate(pool, rest.shape[2:], mode="nearest")
        pools.append(pool.flatten(2).mT)
    return pools


def coarser(level: Tensor) -> tuple[Tensor, Tensor]:
    """Every second token of a level [B, n, C], and the level less each of them, twice in a row."""
    made = level[:, ::2]
    return made, level - made.repeat_interleave(2, dim=1)


def blockwise(sizes: Sequence[int]) -> Tensor:
    """Which tokens each one sees, [N, N] bool, of blocks in a row: those of its own block and of those before it."""
    numbers = torch.arange(len(sizes), device="cpu").repeat_interleave(torch.tensor(sizes, device="cpu"))
    return numbers[:, None] >= numbers


def rotary_of_levels(members: Sequence[Sides | int], head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, head_width] of members in a row: grids, and numbers of tokens on the diagonal.

    Each begins, on both axes, as many places on as there are tokens before it. The first half of a head's channels is
    for rows.
    """
    counts = [member if isinstance(member, int) else math.prod(member) for member in members]
    places = []
    for member, before in zip(members, [0, *accumulate(counts)]):
        diagonal = torch.arange(member, dtype=torch.float64, device="cpu") if isinstance(member, int) else None
        own = coordinates(member) if diagonal is None else torch.stack([diagonal, diagonal], dim=1)
        places.append(own + before)
    angles = axis_angles(torch.cat(places), [head_width // 2] * 2)
    return angles.cos().float(), angles.sin().float()
