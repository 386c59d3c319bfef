"""What a training reads codes from: the contract of the store, and of images that are encoded when they are needed."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import Draws, uniform_by_seed
from pipeline.images.reading import ImageBatch, Images


@dataclass
class CodeBatch:
    """Codes of a collection's rows, ready for a generator's training."""

    code: Code  # z [B, N, C] float32 at unit scale, or ids [B, N] or [B, N, codebooks] int64; class_token if stored
    std: Tensor | None = None  # [B, N, C]: of the posterior whose mean is code.z, where moments are read
    condition: Condition | None = None  # labels; None when the images have none
    features: dict[str, Tensor] = field(default_factory=dict)  # by loss term, [B, M, width], where they are stored
    images: Tensor | None = None  # [B, C, H, W], of the same views, where the source reads them

    def to(self, *args: Any, **kwargs: Any) -> "CodeBatch":
        parts = (self.code, self.std, self.condition)
        moved = [part if part is None else part.to(*args, **kwargs) for part in parts]
        features = {term: tensor.to(*args, **kwargs) for term, tensor in self.features.items()}
        return CodeBatch(*moved, features, self.images if self.images is None else self.images.to(*args, **kwargs))

    def __len__(self) -> int:
        return len(self.code)


class BatchEncoder(Protocol):
    """Makes codes of batches of images."""

    def encode(self, batch: ImageBatch, draws: Draws) -> CodeBatch:
        """The codes of a batch, with its images; posteriors are sampled by `draws`."""

    def networks(self) -> list[nn.Module]:
        """All that encoding computes by."""


class CodeSource(ABC):
    """Codes of a split of images, by row.

    `batch` may run in a process that reads ahead. What it returns are codes, or what `encoder` makes codes of in the
    process that trains.
    """

    encoder: BatchEncoder | None = None
    reads_images: bool = False  # whether `batch` reads images, which more than one process is needed for

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self.spec = LatentSpec.read(manifest["spec"])
        self.class_names: list[str] = manifest["class_names"]
        self.views: int = manifest["views"]  # of an image, that `batch` chooses from

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor, seeds: Tensor) -> Any:
        """Rows `indices` [B]; which view row i is of depends on `seeds[i]` alone."""

    @abstractmethod
    def plain(self, indices: Tensor, flip: bool = False) -> CodeBatch:
        """Rows `indices` [B], on the CPU, the first view of each, or its mirror; ValueError where there are no mirrors.

        The first view is the image as it is; where there are crops it is the centre of the first factor's.
        """

    def chosen(self, seeds: Tensor) -> Tensor:
        """Numbers of the views that `batch` takes of rows with these seeds [B], all equally likely."""
        if self.views == 1:
            return torch.zeros_like(seeds)
        return (uniform_by_seed(seeds, "view").double() * self.views).long()

    def check_images(self, images: Images) -> None:
        """ValueError where the codes are not of these images as they are now."""
        if self.manifest["data"]["fingerprint"] != images.fingerprint():
            raise ValueError(f"the codes in {self.folder} are not of the recipe's images; encode them again")
