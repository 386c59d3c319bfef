"""CKNNA and SE-CKNNA: whether codes and a vision model give images the same nearest neighbours."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.draws import Draws
from pipeline.features.neighbours import BLOCK, rows_of
from pipeline.features.passes import PerImage
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric

NEIGHBOURS = 10
QUANTILE = 0.95  # of the absolute values, beyond which features are clipped
NOISES = (0.05, 0.1, 0.15, 0.2)  # standard deviations, of the range [0, 1]
SCALES = (1.0, 0.75, 0.5, 0.25)
TURNS = 4  # quarters
Kernel = tuple[Tensor, Tensor]  # entries of a matrix [n, n]: their places, row * n + column, in rising order; values


class NeighbourAlignment(TokenizerMetric):
    """Kernel alignment over mutual nearest neighbours, of the images and of changed views of them."""

    quantities = (
        Quantity(
            "cknna",
            "CKNNA",
            "higher",
            "agreement of neighbours by codes and by a vision model: 1 for equal features, about k / n by chance",
        ),
        Quantity(
            "se_cknna",
            "SE-CKNNA",
            "higher",
            "CKNNA over shrunk, turned and noisy images, mean over the kinds of change",
        ),
    )
    order = 630
    group = "Meaning"

    def rows(self, batch: EncodedImages) -> PerImage:
        rows = {"vision": batch.vision(batch.images)}
        for name, view in equivariant_views(batch.images, batch.draws).items():
            rows |= {f"view_{name}_code": batch.encode(view).z.mean(dim=1), f"view_{name}_vision": batch.vision(view)}
        return rows

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        rows = inputs.held_out.rows
        count = len(rows["vision"])
        neighbours = min(NEIGHBOURS, count - 2)
        where = {
            "images": f"{count} held-out images",
            "neighbours": neighbours,
            "code": "mean over tokens",
            "clipped": f"at the {QUANTILE:g} quantile of absolute values",
            "features": inputs.vision,
        } | inputs.held_out.protocol
        value = neighbour_alignment(rows["z"].mean(dim=1), rows["vision"], neighbours)
        yield self.quantities[0].measurement(value, where, details={"by_chance_about": neighbours / (count - 1)})
        views = [name[5:-5] for name in rows if name.startswith("view_") and name.endswith("_code")]
        of_views = {
            view: neighbour_alignment(rows[f"view_{view}_code"], rows[f"view_{view}_vision"], neighbours)
            for view in views
        }
        where = where | {"views": "shrunk on grey and turned; four strengths of noise"}
        value = sum(of_views.values()) / len(of_views)
        yield self.quantities[1].measurement(value, where, details=of_views)


def equivariant_views(images: Tensor, draws: Draws) -> dict[str, Tensor]:
    """Five changes of images [B, C, H, W] in [-1, 1], each of the same shape, by name.

    Of VFM-VAE, arXiv:2510.18457: in `turned`, every image has one of 16 pairs of a scale and a number of quarter turns;
    the others add noise. There a shrunk image is a smaller one; here it stands in the middle of a grey one of the same
    size, since not every tokenizer encodes other sizes. What noise takes out of [-1, 1] is clipped.
    """
    pairs = (draws.uniform("pair") * len(SCALES) * TURNS).long().tolist()
    views = {"turned": torch.stack([turned(image, *divmod(pair, TURNS)) for image, pair in zip(images, pairs)])}
    for noise in NOISES:
        added = draws.normal(f"noise {noise:g}", tuple(images.shape[1:])).to(images)
        views[f"noise_{noise:g}"] = (images + 2 * noise * added).clamp(-1, 1)  # the range is 2 wide here
    return views


def turned(image: Tensor, scale: int, turns: int) -> Tensor:
    """An image [C, H, W] at number `scale` of `SCALES` on grey, by `turns` quarter turns; rectangles by half ones."""
    sides = image.shape[1:]
    small = [max(1, round(SCALES[scale] * side)) for side in sides]
    if small != list(sides):
        image = F.interpolate(image[None], small, mode="bicubic", antialias=True)[0].clamp(-1, 1)
        (down, below), (across, beside) = (
            ((side - s) // 2, side - s - (side - s) // 2) for side, s in zip(sides, small)
        )
        image = F.pad(image, (across, beside, down, below))
    return image.rot90(turns if sides[0] == sides[1] else turns // 2 * 2, dims=(1, 2))


def neighbour_alignment(first: Tensor, second: Tensor, neighbours: int = 10) -> float:
    """Centred kernel alignment over mutual nearest neighbours, of rows [n, D] and [n, E] of the same images, float64.

    Huh et al., arXiv:2405.07987, appendix A, in the form that VFM-VAE uses (arXiv:2510.18457): rows clipped at the
    `QUANTILE` of their absolute values and brought to length 1, linear kernels, the unbiased HSIC over the pairs that
    are among the nearest `neighbours` of a row, itself not counted, in both. It is 1 for a set and itself, and about
    neighbours / (n - 1) for sets that have nothing to do with each other: so many of the pairs are mutual by chance.
    A set whose rows are all the same has no neighbours, and 0. Raises ValueError for n <= max(neighbours, 3).
    """
    if len(first) <= max(neighbours, 3):
        raise ValueError(f"CKNNA of {neighbours} neighbours needs more than {len(first)} images; evaluate more")
    if any((rows == rows[0]).all() for rows in (first, second)):
        return 0.0
    one, other = (nearest_products(clipped(rows), neighbours) for rows in (first, second))
    scale = hsic(one, one, len(first)) * hsic(other, other, len(first))
    both = torch.isin(one[0], other[0]), torch.isin(other[0], one[0])
    mutual = [(places[kept], values[kept]) for (places, values), kept in zip((one, other), both)]
    return hsic(*mutual, len(first)) / scale**0.5


def clipped(rows: Tensor) -> Tensor:
    """Rows in float64, clipped at the `QUANTILE` of their absolute values and of length 1."""
    rows = rows.double()
    values = rows.abs().flatten()
    limit = values.kthvalue(max(1, round(QUANTILE * len(values)))).values.item()
    return F.normalize(rows.clamp(-limit, limit), dim=1)


def nearest_products(rows: Tensor, neighbours: int) -> Kernel:
    """The inner products of each row with the `neighbours` other rows where they are largest, in rising places."""
    places, values, count = [], [], len(rows)
    for numbers in torch.arange(count, device=rows.device).split(rows_of(BLOCK, count)):
        products = rows[numbers] @ rows.T
        products[torch.arange(len(numbers), device=rows.device), numbers] = -torch.inf
        largest = products.topk(neighbours, dim=1)
        places.append((numbers[:, None] * count + largest.indices).flatten())
        values.append(largest.values.flatten())
    order = torch.cat(places).argsort()
    return torch.cat(places)[order], torch.cat(values)[order]


def hsic(first: Kernel, second: Kernel, n: int) -> float:
    """The unbiased estimate of Song et al., 2012 (JMLR 13), equation 5, of kernels [n, n] without their diagonals.

    They need not be symmetric, and are given by the entries that are not zero.
    """
    rows, columns = first[0] // n, first[0] % n
    turned = columns * n + rows  # where the transposed second kernel meets an entry of the first
    at = torch.searchsorted(second[0], turned).clamp(max=len(second[0]) - 1) if len(second[0]) else None
    met = None if at is None else torch.where(second[0][at] == turned, second[1][at], 0.0)
    trace = first[1].new_zeros(()) if met is None else (first[1] * met).sum()
    means = first[1].sum() * second[1].sum() / ((n - 1) * (n - 2))
    down = first[1].new_zeros(n).index_add_(0, columns, first[1])  # sums over the rows of the first
    across = first[1].new_zeros(n).index_add_(0, second[0] // n, second[1])
    cross = down @ across * 2 / (n - 2)
    return ((trace + means - cross) / (n * (n - 3))).item()
