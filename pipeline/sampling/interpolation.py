"""Images on the way from one to another: one class, and starting noise on the arc between that of two seeds."""

import torch
from torch import Generator, Tensor

from pipeline.draws import ImageDraws
from pipeline.latent_pipeline import LatentPipeline

STEPS = 9  # images of a row, both ends among them


def arc(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """[steps, ...]: from `first` to `last` at equal angles, lengths in between theirs (Shoemake 1985, slerp).

    Unlike a straight line it stays where standard normal values lie. Raises ValueError where the two are opposite.
    """
    one, other = first.flatten().double(), last.flatten().double()
    lengths = one.norm(), other.norm()
    angle = torch.acos((one @ other / (lengths[0] * lengths[1])).clamp(-1, 1))
    if torch.pi - angle < 1e-6:
        raise ValueError("two opposite points have no shortest arc between them; take other seeds")
    shares = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    if angle < 1e-6:
        rows = one + shares * (other - one)
    else:
        ends = torch.stack([one / lengths[0], other / lengths[1]])
        weights = torch.cat([torch.sin((1 - shares) * angle), torch.sin(shares * angle)], dim=1) / torch.sin(angle)
        rows = weights @ ends * (lengths[0] + shares * (lengths[1] - lengths[0]))
    return rows.to(first.dtype).unflatten(1, first.shape)


def interpolate(pipe: LatentPipeline, labels: list[int] | None, pairs: list[tuple[int, int]]) -> Tensor:
    """[pairs, STEPS, 3, H, W] in [0, 1]: a row for each pair of seeds and its label, as the pipeline samples.

    What the sampler draws besides its start is that of the first seed, all along a row. Raises ValueError for a
    generator of ids, whose samples start from nothing that others lie between.
    """
    rows = []
    for place, (first, last) in enumerate(pairs):
        ends = ImageDraws.from_seeds([first, last]).normal("start", pipe.tokenizer.spec.shape)
        asked = None if labels is None else [labels[place]] * STEPS
        draws = [Generator().manual_seed(first) for _ in range(STEPS)]
        starts = arc(*ends, STEPS)
        rows.append(pipe(asked, num_images=STEPS, generator=draws, latents=starts, output_type="pt").images.cpu())
    return torch.stack(rows)
