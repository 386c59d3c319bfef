"""Stored codes with the images that they are of, for a generator's training that looks at both."""

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.images.reading import Images
from pipeline.latents.code_source import CodeBatch, CodeSource
from pipeline.latents.store import LatentStore


class CodesAndImages(CodeSource):
    """A store whose batches hold, beside every code, the pixels of the same view of the same image.

    Raises ValueError where the store was not made from these images.
    """

    reads_images = True

    def __init__(self, store: LatentStore, images: Images):
        super().__init__(store.folder, store.manifest)
        self.check_images(images)
        self.store, self.images = store, images

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, indices: Tensor, seeds: Tensor) -> CodeBatch:
        """As the store's, and the images of the views that it takes."""
        made_with = self.store.manifest
        seen = self.images.chosen(indices, self.store.chosen(seeds), made_with["crops"], made_with["flip"])
        return replace(self.store.batch(indices, seeds), images=seen.images)

    def plain(self, indices: Tensor, flip: bool = False) -> CodeBatch:
        """As the store's, and the images."""
        made_with = self.store.manifest
        views = torch.full_like(indices, int(flip))
        seen = self.images.chosen(indices, views, made_with["crops"], made_with["flip"])
        return replace(self.store.plain(indices, flip), images=seen.images)
