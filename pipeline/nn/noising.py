"""Interpolation of latents with noise and its level, for perturbations and for heads of losses."""

from torch import Tensor

from pipeline.draws import Draws


def dimension_shift(values: int, base: float) -> float:
    """sqrt(values / base): codes of more values get higher noise levels, as images of more pixels do.

    Esser et al., arXiv:2403.03206, section 5.3.2; RecTok (arXiv:2512.13421) and RAE (arXiv:2510.11690) have a base of
    4096, at which codes of fewer values are shifted the other way.
    """
    return (values / base) ** 0.5


def noise_level(z: Tensor, draws: Draws, name: str, shift: float, base: float | None = None) -> Tensor:
    """One u per image, [B, 1, 1]: s t / (1 + (s - 1) t), t uniform, s = `shift` times that of z's size over `base`."""
    s = shift if base is None else shift * dimension_shift(z[0].numel(), base)
    t = draws.uniform(name, (1, 1))
    return s * t / (1 + (s - 1) * t)


def interpolate(z: Tensor, noise: Tensor, u: Tensor, scale: float = 1.0) -> Tensor:
    """(1 - u) z + u `scale` noise, in the type of z."""
    u = u.to(z)
    return (1 - u) * z + u * scale * noise.to(z)
