"""The codes of held-out images, made as those of training images are."""

from functools import cached_property

from torch import Tensor

from pipeline.features.passes import evenly_spaced
from pipeline.latents.code_source import CodeBatch
from pipeline.latents.encoded_images import EncodedImages
from pipeline.training.held_out import ROWS


class HeldOutCodes:
    """Codes of ROWS images at most, evenly through a split, encoded when they are first read.

    A row is the first view of an image, as `LatentStore.plain` gives it.
    """

    def __init__(self, images: EncodedImages):
        self.images = images
        self.chosen = evenly_spaced(None, len(images), min(len(images), ROWS))

    def __len__(self) -> int:
        return len(self.chosen)

    def plain(self, indices: Tensor) -> CodeBatch:
        """Rows `indices` [B]."""
        made = self._codes
        condition = None if made.condition is None else made.condition[indices]
        return CodeBatch(made.code[indices], None if made.std is None else made.std[indices], condition)

    @cached_property
    def _codes(self) -> CodeBatch:
        return self.images.plain(self.chosen)
