"""Distance between images in the feature maps of a frozen network."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Backbone(Protocol):
    """A frozen network; numbers that are measured with it bear its `name`."""

    name: str
    map_weights: Sequence[Tensor] | None  # [C] per map, those of LPIPS; None where all channels count alike

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w] of images [B, C, H, W] in [-1, 1]."""


def perceptual_distance(backbone: Backbone, images: Tensor, others: Tensor) -> Tensor:
    """[B]: squared differences of the channel-normalised maps, weighted over channels, averaged over positions.

    Zhang et al., arXiv:1801.03924, equation 1. With the backbone's `map_weights` it is the sum over maps, as LPIPS;
    without, the mean over maps of the squared distance of unit vectors, 0 to 4.
    """
    pairs = zip(backbone.maps(images), backbone.maps(others))
    differences = [(normalize_channels(a) - normalize_channels(b)).square() for a, b in pairs]  # [B, C, h, w]
    if backbone.map_weights is not None:
        return sum((d * w[:, None, None]).sum(1).mean(dim=(1, 2)) for d, w in zip(differences, backbone.map_weights))
    return torch.stack([d.sum(1).mean(dim=(1, 2)) for d in differences]).mean(0)


def normalize_channels(maps: Tensor) -> Tensor:
    """Every position's channel vector at length one, in float32; a zero vector stays zero, with a finite gradient."""
    maps = maps.float()
    return maps / (maps.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()
