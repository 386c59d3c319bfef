"""How much a code moves when its image is encoded anew, or under noise."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.draws import Draws


def ids_changed(first: Tensor, second: Tensor) -> Tensor:
    """Share of the ids [B, ...] of each image that differ, [B] float64."""
    return (first != second).flatten(1).double().mean(dim=1)


def code_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the angle between the vectors of each token of two codes [B, N, C], the mean over tokens, [B]."""
    return F.cosine_similarity(first.double(), second.double(), dim=-1).mean(dim=1)


def with_noise(images: Tensor, decibel: float, draws: Draws) -> Tensor:
    """Images [B, 3, H, W] plus white Gaussian noise of so many decibels below the variance of each image's pixels."""
    variance = images.flatten(1).var(dim=1, unbiased=False)[:, None, None, None]
    scale = torch.sqrt(variance * 10 ** (-decibel / 10))
    return images + scale * draws.normal(f"noise {decibel:g} dB", tuple(images.shape[1:])).to(images)
