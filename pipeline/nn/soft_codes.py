"""Soft codes: which code a latent has as a mixture, whose temperature falls until it is one code."""

import torch
from torch import Tensor

from pipeline.nn.clusters import distances


def mix_codes(latents: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Latents [B, N, C] to the mixture softmax(-|latent - row|^2 / (temperature m)) over the `rows` [V, C], [B, N, V].

    m is the mean squared distance of the latents to their nearest rows, so that a temperature means the same for all
    codebooks: at 1 a code that is further away than the nearest one by that mean counts 1 / e of it. Gradients go to
    latents and rows, none to m.
    """
    points = latents.flatten(0, 1)
    apart = distances(points, rows) + points.square().sum(dim=-1, keepdim=True)
    scale = apart.detach().min(dim=-1).values.mean().clamp_min(torch.finfo(apart.dtype).tiny)
    return (apart / (-temperature * scale)).softmax(dim=-1).unflatten(0, latents.shape[:2])
