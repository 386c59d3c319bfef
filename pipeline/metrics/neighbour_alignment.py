"""CKNNA and SE-CKNNA: whether codes and a vision model give images the same nearest neighbours."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.draws import Draws
from pipeline.features.passes import PerImage
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric

NEIGHBOURS = 10
QUANTILE = 0.95  # of the absolute values, beyond which features are clipped
NOISES = (0.05, 0.1, 0.15, 0.2)  # standard deviations, of the range [0, 1]
SCALES = (1.0, 0.75, 0.5, 0.25)
TURNS = 4  # quarters


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
    """Five changes of images [B, 3, H, W] in [-1, 1], each of the same shape, by name.

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
    """An image [3, H, W], square, at number `scale` of `SCALES` on grey and by `turns` quarter turns."""
    size = image.shape[-1]
    side = max(1, round(SCALES[scale] * size))
    if side < size:
        small = F.interpolate(image[None], side, mode="bicubic", antialias=True)[0].clamp(-1, 1)
        before = (size - side) // 2
        image = F.pad(small, (before, size - side - before) * 2)
    return image.rot90(turns, dims=(1, 2))


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
    one, other = kernel(first), kernel(second)
    near_one, near_other = nearest(one, neighbours), nearest(other, neighbours)
    both = near_one & near_other
    scale = hsic(one * near_one, one * near_one) * hsic(other * near_other, other * near_other)
    return hsic(one * both, other * both) / scale**0.5


def kernel(rows: Tensor) -> Tensor:
    """Inner products [n, n] of the rows, clipped and of length 1."""
    rows = rows.double()
    values = rows.abs().flatten()
    limit = values.kthvalue(max(1, round(QUANTILE * len(values)))).values.item()
    rows = F.normalize(rows.clamp(-limit, limit), dim=1)
    return rows @ rows.T


def nearest(products: Tensor, neighbours: int) -> Tensor:
    """Which columns of [n, n] are among the largest `neighbours` of their row, the diagonal left out: [n, n] bool."""
    others = products.clone().fill_diagonal_(-torch.inf)
    return torch.zeros_like(products, dtype=torch.bool).scatter_(1, others.topk(neighbours).indices, True)


def hsic(first: Tensor, second: Tensor) -> float:
    """The unbiased estimate of Song et al., 2012 (JMLR 13), equation 5, of any kernels [n, n], symmetric or not."""
    n = len(first)
    first, second = (matrix.clone().fill_diagonal_(0) for matrix in (first, second))
    trace = (first * second.T).sum()
    means = first.sum() * second.sum() / ((n - 1) * (n - 2))
    cross = first.sum(dim=0) @ second.sum(dim=1) * 2 / (n - 2)
    return ((trace + means - cross) / (n * (n - 3))).item()
