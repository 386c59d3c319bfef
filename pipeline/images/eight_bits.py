"""Images in [-1, 1] as the 8-bit levels that published metrics are defined on."""

from torch import Tensor

from pipeline.nn.finite import check_finite


def levels(images: Tensor) -> Tensor:
    """Images in [-1, 1], clipped and rounded to what a file holds, in [0, 255] float32; NotFinite where one is not."""
    check_finite(images, "the decoded image")
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round()
