"""Images on the way from one to another: one class, and starting noise on the arc between that of two seeds."""

import torch
from torch import Generator, Tensor

from pipeline.draws import ImageDraws
from pipeline.latent_pipeline import LatentPipeline
from pipeline.samplers.arc import arc

STEPS = 9  # images of a row, both ends among them


def interpolate(
    pipe: LatentPipeline,
    labels: list[int] | None,
    pairs: list[tuple[int, int]],
    prompts: list[str] | None = None,
) -> Tensor:
    """[pairs, STEPS, 3, H, W] in [0, 1]: a row for each pair of seeds, its label and prompt, as the pipeline samples.

    What the sampler draws besides its start is that of the first seed, all along a row. Raises ValueError for a
    generator of ids, whose samples start from nothing that others lie between.
    """
    rows = []
    for place, (first, last) in enumerate(pairs):
        ends = ImageDraws.from_seeds([first, last]).normal("start", pipe.tokenizer.spec.shape)
        asked = None if labels is None else [labels[place]] * STEPS
        draws = [Generator().manual_seed(first) for _ in range(STEPS)]
        starts = arc(*ends, STEPS)
        given = {"num_images": STEPS, "prompt": None if prompts is None else prompts[place]}
        rows.append(pipe(asked, generator=draws, latents=starts, output_type="pt", **given).images.cpu())
    return torch.stack(rows)
