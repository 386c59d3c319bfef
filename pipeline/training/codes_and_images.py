"""Stored codes with the images that they are of, for a generator's training that looks at both."""

from dataclasses import replace

from torch import Tensor

from pipeline.images.reading import Images
from pipeline.latents.store import CodeBatch, LatentStore


class CodesAndImages:
    """A store whose batches hold, beside every code, the pixels of the same view of the same image.

    Raises ValueError where the store was not made from these images.
    """

    def __init__(self, store: LatentStore, images: Images):
        store.check_images(images)
        self.store, self.images = store, images

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, indices: Tensor, seeds: Tensor) -> CodeBatch:
        """As the store's, and the images of the views that it takes."""
        made_with = self.store.manifest
        seen = self.images.chosen(indices, self.store.chosen(seeds), made_with["crops"], made_with["flip"])
        return replace(self.store.batch(indices, seeds), images=seen.images)
