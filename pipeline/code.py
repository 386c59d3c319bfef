"""What travels along the line: an image's code, its geometry, and what a generator is asked for."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentSpec:
    """Geometry of one image's code: stated by the tokenizer, read by every later stage, never configured.

    A code with levels is a row of tokens, those of the coarsest level first: its grid has one axis, of as many tokens
    as the levels have together. What a level is of (a map of the image at some scale, some of the tokens of a 1-D
    tokenizer) is the tokenizer's to say. A code of segments is a row too, of parts whose ids are of codebooks of their
    own, all of `vocab` codes, so that every id below `vocab` has a meaning at every token. A row that `ends` holds the
    tokens of its image, one or more, and then the end, the last id below `vocab`, up to the last place. ValueError
    where the levels, or the segments, do not add up to the tokens, and where no row could end.
    """

    grid: tuple[int, ...]  # (16, 16) a feature map; (32,) a 1-D tokenizer; (680,) the levels of VAR in a row
    dim: int  # channels a token
    vocab: int = 0  # codebook size; 0 when continuous
    codebooks: int = 1  # ids a token: product, factorised or residual quantisers
    levels: tuple[int, ...] = ()  # tokens a level, coarse to fine, when the order is hierarchical
    segments: tuple[tuple[int, ...], ...] = ()  # the grid of each, in a row, where segments have their own codebooks
    ends: bool = False  # whether images have different numbers of tokens, and the last id is the end of a row

    def __post_init__(self) -> None:
        if self.levels and (len(self.grid) != 1 or sum(self.levels) != self.tokens):
            raise ValueError(f"levels of {list(self.levels)} tokens are no code on a grid of {list(self.grid)}")
        if self.segments and (len(self.grid) != 1 or sum(self.segment_tokens) != self.tokens):
            grids = [list(grid) for grid in self.segments]
            raise ValueError(f"segments on grids {grids} are no code on a grid of {list(self.grid)}")
        if self.ends and (len(self.grid) != 1 or self.codebooks != 1 or self.vocab < 2 or self.levels or self.segments):
            raise ValueError("only a row of tokens with one id each can end early")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "LatentSpec":
        """The spec of its fields as JSON holds them, with lists for tuples."""
        return cls(**{name: as_tuple(value) for name, value in values.items()})

    @property
    def segment_tokens(self) -> tuple[int, ...]:
        """Tokens of each segment, in the order of the row; nothing for a code without segments."""
        return tuple(math.prod(grid) for grid in self.segments)

    def by_codebook(self, ids: Tensor) -> list[Tensor]:
        """Ids [..., N, codebooks] in parts whose tokens share codebooks: those of each segment, or all of them."""
        return list(ids.split(self.segment_tokens, dim=-2)) if self.segments else [ids]

    @property
    def codes(self) -> int:
        """Ids that a token can have: `vocab`, or all of these but the end."""
        return self.vocab - self.ends

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def shape(self) -> tuple[int, int]:
        """[N, C] of one continuous code."""
        return self.tokens, self.dim


def as_tuple(value: Any) -> Any:
    """A value with tuples for its lists, however deep these lie."""
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class TextSpec:
    """Geometry of one caption's features: stated by the text encoder, read by every later stage, never configured."""

    tokens: int  # places of a caption, the padded ones counted
    dim: int  # channels of a place in one layer
    layers: int = 1  # whose hidden states are joined on the last axis, in their order
    pooled: int = 0  # channels of the vector of a whole caption; 0 where the encoder has none


class Batched:
    """Batched records: every tensor field shares the first axis."""

    def map(self, function: Callable[[Tensor], Tensor]):
        """The same record with `function` applied to every tensor in it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{name: None if value is None else function(value) for name, value in values.items()})

    def to(self, *args, **kwargs):
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def cast(self, dtype: torch.dtype):
        """The same record, its floating-point tensors of this type; ids, labels and masks stay as they are."""
        return self.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def __getitem__(self, index):
        return self.map(lambda tensor: tensor[index])

    def __len__(self) -> int:
        return next(len(value) for f in fields(self) if (value := getattr(self, f.name)) is not None)

    @classmethod
    def cat(cls, records: list):
        """Join along the batch axis; a field is present in all or in none."""
        columns = {f.name: [getattr(record, f.name) for record in records] for f in fields(cls)}
        return cls(**{name: None if column[0] is None else torch.cat(column) for name, column in columns.items()})


@dataclass
class Code(Batched):
    """A batch of codes, sequence first everywhere between bottleneck and decoder."""

    z: Tensor | None = None  # [B, N, C]  what a continuous generator models, zero mean and unit std
    ids: Tensor | None = None  # [B, N] or [B, N, codebooks]  what a discrete generator models
    class_token: Tensor | None = None  # [B, D]  of a vision model, which no decoder reads; see pipeline.nn.class_token


def stack_ids(ids: Tensor) -> Tensor:
    """Ids [B, N] or [B, N, codebooks] as [B, N, codebooks], the form in which networks and objectives treat them."""
    return ids[..., None] if ids.ndim == 2 else ids


def plain_ids(ids: Tensor) -> Tensor:
    """The inverse of `stack_ids`: [B, N, 1] as [B, N], the form in which a `Code` holds ids of a single codebook."""
    return ids[..., 0] if ids.shape[-1] == 1 else ids


@dataclass
class Condition(Batched):
    """What a generator is asked for; a network knows its own null."""

    labels: Tensor | None = None  # [B] int64; None when unconditional
    text: Tensor | None = None  # [B, T, layers * dim]  a frozen text encoder's features, see TextSpec
    text_mask: Tensor | None = None  # [B, T] bool, True where a place holds a token of the caption
    pooled: Tensor | None = None  # [B, P]  of the whole caption, where the encoder has such a vector
    score: Tensor | None = None  # [B]  how good the image looks, about 0 to 10, for networks that are told that
