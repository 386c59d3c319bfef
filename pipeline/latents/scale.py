"""The scale of a tokenizer's codes: the mean and std that bring them to zero mean and unit std."""

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.images.reading import Images
from pipeline.latents.encoding import Encoder, EncodingPlan, encode_views
from pipeline.tokenizers.base import Tokenizer

MEASURED = 10_000  # images at most that mean and std are taken from


def measure(
    tokenizer: Tokenizer, images: Images, plan: EncodingPlan, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Mean and std, [C] or [N, C] as the tokenizer has them, of the codes as a generator will see them.

    They are of samples, unless only modes are stored. One pass with sums in double precision. Discrete codes keep 0 and
    1, and so does the std of a constant channel.
    """
    tokenizer.mean.zero_(), tokenizer.std.fill_(1)
    if tokenizer.spec.vocab:
        return tokenizer.mean, tokenizer.std
    rows = torch.linspace(0, len(images) - 1, min(len(images), MEASURED), dtype=torch.float64).long()
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    encoder = Encoder(tokenizer, plan, accelerator.device)
    shape = tokenizer.mean.shape
    sums = torch.zeros(3, *shape, dtype=torch.float64)  # count, z, z^2
    for tensors in encode_views(encoder, images, mine.split(plan.latents.batch)):
        sums += power_sums(len(shape), **tensors)
    count, first, second = sum(gather_object([sums]))
    mean = first / count
    std = (second / count - mean**2).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 0, std, 1).float()


def power_sums(axes: int, z: Tensor, std: Tensor | None = None, **others: Tensor) -> Tensor:
    """Count, sum and sum of squares [3, ...] of z over all but its last axes; with a posterior's std, expected."""
    z = z.double().flatten(0, -axes - 1)
    square = z**2 if std is None else z**2 + std.double().flatten(0, -axes - 1) ** 2
    return torch.stack([torch.full_like(z[0], len(z)), z.sum(0), square.sum(0)])


def of_channels(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std [C] of all places together, of those [C] or [N, C]."""
    mean, std = mean.view(-1, mean.shape[-1]), std.view(-1, std.shape[-1])
    centre = mean.mean(0)
    return centre, (std.square() + (mean - centre).square()).mean(0).sqrt()
