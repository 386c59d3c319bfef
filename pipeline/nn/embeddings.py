"""Embeddings beside those of tokens: of the time, the class and the position of each token."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoid(time: Tensor, width: int, longest: float = 10000.0) -> Tensor:
    """[B] to [B, width] in float32: cosines, then sines, at frequencies longest^(-2i / width); odd widths end in 0.

    Ho et al., arXiv:2006.11239, in the order of facebookresearch/DiT.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time.float()[:, None] * torch.exp(-math.log(longest) / half * steps)  # [B, half]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width % 2))


class TimeEmbedding(nn.Module):
    """Times [B] to [B, width]: a sinusoid of `frequencies` entries and two linear layers.

    The time stays in float32 up to the sinusoid, whatever the weights' type: bfloat16 would round 981 to 980.
    """

    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        self.frequencies = frequencies
        self.up = nn.Linear(frequencies, width)
        self.down = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        h = sinusoid(time, self.frequencies).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(h)))


class GaussianTimeEmbedding(nn.Module):
    """Times [B] in [0, 1] to [B, width]: sines, then cosines, at frequencies drawn from N(0, 1), and two linear layers.

    Tancik et al., arXiv:2006.10739, as in the wide-head transformers of RAE and RecTok. The frequencies are kept with
    the weights and never trained.
    """

    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(frequencies))
        self.up = nn.Linear(2 * frequencies, width)
        self.down = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        angles = 2 * math.pi * time.float()[:, None] * self.frequencies.float()  # [B, frequencies]
        h = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(h)))


class LabelEmbedding(nn.Embedding):
    """Labels [B] to [B, width]; the last row, number `num_classes`, is the null class."""

    def __init__(self, num_classes: int, width: int):
        super().__init__(num_classes + 1, width)


def learned_vectors(count: int, width: int) -> nn.Parameter:
    """`count` learned vectors [count, width], normal with a standard deviation of width^-0.5."""
    return nn.Parameter(width**-0.5 * torch.randn(count, width))


def coordinates(grid: Sequence[int], counted_on: Sequence[int] | None = None) -> Tensor:
    """Coordinate of every token along every axis, [N, axes] float64, row by row: 0, 1, 2, ...

    With `counted_on`, another grid over the same image, they are those of that grid: tokens are as far apart as they
    are there, (i + 1/2) of / size - 1/2, which is between its tokens where there are fewer.
    """
    counted_on = grid if counted_on is None else counted_on
    axes = [
        (torch.arange(size, dtype=torch.float64, device="cpu") + 0.5) * of / size - 0.5
        for size, of in zip(grid, counted_on, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def resample_positions(table: Tensor, grid: Sequence[int], new_grid: Sequence[int]) -> Tensor:
    """Learned positions [P + N, C] of a grid as those [P + M, C] of a new one over the same image; P rows stay first.

    Bicubic, as vision transformers are brought to another resolution (Dosovitskiy et al., arXiv:2010.11929, section
    3.2), smoothed where there are fewer.
    """
    first = len(table) - math.prod(grid)
    sizes = [(1, *sides)[-2:] for sides in (grid, new_grid)]  # a row of tokens is a map of one row
    grid_map = table[first:].float().T.unflatten(1, sizes[0])[None]  # [1, C, H, W]
    resampled = F.interpolate(grid_map, sizes[1], mode="bicubic", antialias=True)[0].flatten(1).T
    return torch.cat([table[:first], resampled.to(table.dtype)])


def fixed_positions(grid: Sequence[int], width: int, counted_on: Sequence[int] | None = None) -> Tensor:
    """Sine-cosine positions [N, width] in float32, each axis an equal number of channels: columns first, then rows.

    An axis has sines, then cosines, at frequencies 10000^(-i / n); as in MAE (He et al., arXiv:2111.06377) and DiT.
    `counted_on` as for `coordinates`. Raises ValueError when the width does not divide.
    """
    axis_width = width // len(grid)
    if width % (2 * len(grid)):
        raise ValueError(f"fixed positions on a {len(grid)}-D grid need a width divisible by {2 * len(grid)}")
    frequencies = 10000.0 ** (-torch.arange(axis_width // 2, dtype=torch.float64, device="cpu") / (axis_width / 2))
    angles = coordinates(grid, counted_on).flip(-1)[:, :, None] * frequencies  # [N, axes, axis_width / 2]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def rotary_tables(
    grid: Sequence[int], head_width: int, counted_on: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, head_width] in float32 for `rotate`; each axis an equal number of channels, rows first.

    Frequencies 10000^(-2i / axis_width), one per pair of adjacent channels; RoFormer (Su et al., arXiv:2104.09864) in
    two axes as in EVA and LightningDiT. `counted_on` as for `coordinates`. Raises ValueError when the head width does
    not divide.
    """
    axis_width = head_width // len(grid)
    if head_width % (2 * len(grid)):
        raise ValueError(f"rotary positions on a {len(grid)}-D grid need a head width divisible by {2 * len(grid)}")
    angles = axis_angles(coordinates(grid, counted_on), [axis_width] * len(grid))
    return angles.cos().float(), angles.sin().float()


def axis_angles(places: Tensor, widths: Sequence[int]) -> Tensor:
    """Angles [N, sum of widths] of coordinates [N, axes] float64: so many channels for each axis, one after another.

    Those of an axis of d channels are its coordinate times 10000^(-2i / d), each for two channels in a row.
    """
    columns = []
    for place, width in zip(places.unbind(dim=1), widths, strict=True):
        frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
        columns.append(place[:, None] * frequencies)
    return torch.cat(columns, dim=1).repeat_interleave(2, dim=-1)


def unit_rotary_tables(grid: Sequence[int], head_width: int) -> tuple[Tensor, Tensor]:
    """As `rotary_tables`, of coordinates from 0 to 1, in RecTok's form (Shi-qingyu/RecTok, ee87aaf).

    The frequencies are 14 pi 10000^(-j / (n - 1)) for j below n = head_width / 4, and an axis has all n of them twice
    in a row. `rotate` pairs neighbouring channels, which so have different angles: it is no rotation, and needs
    `paired=False`. Raises ValueError when the head width does not divide, or is below 8.
    """
    if len(grid) != 2 or head_width % 4 or head_width < 8:
        raise ValueError(f"unit rotary positions need a 2-D grid and a head width of 8, 12, ..., not {head_width}")
    count = head_width // 4
    frequencies = 7 * 10000.0 ** (-torch.arange(count, dtype=torch.float64, device="cpu") / (count - 1))
    sides = [torch.linspace(0, 1, side, dtype=torch.float64, device="cpu") for side in grid]
    places = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)  # [N, 2]
    angles = (2 * math.pi * places[:, :, None] * frequencies).repeat(1, 1, 2).flatten(1)
    return angles.cos().float(), angles.sin().float()


def register_table(module: nn.Module, name: str, table: Tensor | None) -> None:
    """A buffer that is made anew at loading and never saved; an absent one stays None.

    Accelerate fails to offload an absent buffer that is marked as not persistent, so that mark is left out there.
    """
    module.register_buffer(name, table, persistent=table is None)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, paired: bool = True) -> Tensor:
    """Turn adjacent channel pairs of x [..., N, D] by the angles of its token; lengths are kept.

    (x0, x1) becomes (x0 cos - x1 sin, x1 cos + x0 sin). Returns x's type. Where the two channels of a pair have angles
    of their own the tables are not `paired`.
    """
    if paired and not torch.compiler.is_compiling():  # one pass over x, not five; a compiler fuses the real form alone
        pairs = torch.view_as_complex(x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2)))
        turns = torch.complex(cosines[..., ::2].float(), sines[..., ::2].float())
        return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], dim=-1).flatten(-2)
    return (x * cosines + turned * sines).to(x.dtype)


def patchify(x: Tensor, grid: Sequence[int], patch: int) -> Tensor:
    """Codes [B, N, C] on `grid` to tokens [B, N / patch^axes, patch^axes * C], row by row inside a patch too."""
    if patch == 1:
        return x
    batch, _, channels = x.shape
    if len(grid) == 1:
        return x.reshape(batch, grid[0] // patch, patch * channels)
    rows, columns = grid[0] // patch, grid[1] // patch
    x = x.reshape(batch, rows, patch, columns, patch, channels).transpose(2, 3)
    return x.reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(x: Tensor, grid: Sequence[int], patch: int) -> Tensor:
    """The inverse of `patchify`: tokens [B, N / patch^axes, patch^axes * C] to codes [B, N, C] on `grid`."""
    if patch == 1:
        return x
    batch = x.shape[0]
    if len(grid) == 1:
        return x.reshape(batch, grid[0], -1)
    rows, columns = grid[0] // patch, grid[1] // patch
    x = x.reshape(batch, rows, columns, patch, patch, -1).transpose(2, 3)
    return x.reshape(batch, grid[0] * grid[1], -1)
