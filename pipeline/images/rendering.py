"""The images of a code, as the 8-bit files that people look at."""

import torch
from torch import Tensor

from pipeline.code import Code, Condition
from pipeline.images.stored_pixels import as_saved
from pipeline.tokenizers.base import Tokenizer


@torch.no_grad()
def rendered(tokenizer: Tokenizer, code: Code, condition: Condition | None = None) -> Tensor:
    """Images [B, C, H, W] in [-1, 1], rounded to 8 bits; ValueError where some are not finite."""
    images = tokenizer.decode(code, condition).float()
    if not images.isfinite().all():
        raise ValueError("the decoder makes images that are not finite; train the tokenizer again, with a lower rate")
    return as_saved(images)
