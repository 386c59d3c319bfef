"""Points on the arc between two tensors, of noise or of codes at unit scale."""

import torch
from torch import Tensor


def arc(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """[steps, ...]: from `first` to `last` at equal angles, lengths in between theirs (Shoemake 1985, slerp).

    Unlike a straight line it stays where standard normal values lie. Raises ValueError where the two are opposite.
    """
    one, other = first.flatten().cpu().double(), last.flatten().cpu().double()
    lengths = one.norm(), other.norm()
    angle = torch.acos((one @ other / (lengths[0] * lengths[1])).clamp(-1, 1))
    if torch.pi - angle < 1e-6:
        raise ValueError("two opposite points have no shortest arc between them; take others")
    shares = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    if angle < 1e-6:
        rows = one + shares * (other - one)
    else:
        ends = torch.stack([one / lengths[0], other / lengths[1]])
        weights = torch.cat([torch.sin((1 - shares) * angle), torch.sin(shares * angle)], dim=1) / torch.sin(angle)
        rows = weights @ ends * (lengths[0] + shares * (lengths[1] - lengths[0]))
    return rows.to(first).unflatten(1, first.shape)
