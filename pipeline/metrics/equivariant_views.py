"""The changed images over which SE-CKNNA averages: shrunk and turned, and under noise."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.draws import Draws

NOISES = (0.05, 0.1, 0.15, 0.2)  # standard deviations, of the range [0, 1]
SCALES = (1.0, 0.75, 0.5, 0.25)
TURNS = 4  # quarters


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
