"""Gradient estimators of quantisation: from a quantised vector to the latent before."""

import torch
import torch.nn.functional as F
from torch import Tensor


def straight_through(value: Tensor, latents: Tensor) -> Tensor:
    """`value`, exactly, with its gradient handed to `latents` as it is (Bengio et al., arXiv:1308.3432)."""
    return value.detach() + (latents - latents.detach())


def rotation_trick(value: Tensor, latents: Tensor) -> Tensor:
    """`value` [..., C], exactly, as lambda R latents with constant lambda and R: the rotation trick.

    Fifty et al., arXiv:2410.06424, section 4.2. With unit vectors e of `latents` and q of `value`, R turns e into q in
    their plane: R x = x - 2 r (r . x) + 2 q (e . x), r = (e + q) / |e + q|, and lambda = |value| / |latents|.
    """
    with torch.no_grad():
        e, q = F.normalize(latents, dim=-1), F.normalize(value, dim=-1)
        r = F.normalize(e + q, dim=-1)
        scale = value.norm(dim=-1, keepdim=True) / latents.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    turned = latents - 2 * r * (r * latents).sum(-1, keepdim=True) + 2 * q * (e * latents).sum(-1, keepdim=True)
    return straight_through(value, scale * turned)
