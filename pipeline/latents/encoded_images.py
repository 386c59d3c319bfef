"""Images whose codes are stored nowhere: the frozen tokenizer encodes them each time that they are asked for."""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.captions.table import Captions
from pipeline.code import Condition
from pipeline.components import find
from pipeline.files.shards import MANIFEST
from pipeline.files.writing import read_json
from pipeline.frozen.class_token import ClassToken
from pipeline.frozen.networks import FrozenNetworks
from pipeline.images.reading import ImageBatch, Images
from pipeline.latents.code_source import CodeBatch, CodeSource
from pipeline.latents.encoding import Encoder, EncodingPlan, code_batch
from pipeline.latents.store import LatentStore
from pipeline.recipes.schema import Recipe
from pipeline.saved_folders import load_component


class EncodedImages(CodeSource):
    """A split of images with the encoder that makes their codes; `manifest` is that of the scale of the codes.

    `batch` returns images: of the views that a store would hold, chosen as it chooses, or as `data` augments them where
    `latents.augment` is true. Posteriors are sampled by the draws of the step. A pickled one has no encoder.
    """

    reads_images = True

    def __init__(self, folder: Path, manifest: dict[str, Any], images: Images, encoder: Encoder):
        super().__init__(folder, manifest)
        self.images, self.encoder, self.latents = images, encoder, encoder.plan.latents
        if images.split == "train":
            self.check_images(images)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor, seeds: Tensor) -> ImageBatch:
        """Images of rows `indices` [B]; their view, size, crop and mirror depend on `seeds` alone."""
        if self.latents.augment:
            return self.images.batch(indices, seeds)
        return self.images.chosen(indices, self.chosen(seeds), self.latents.crops, self.latents.flip, seeds)

    def plain(self, indices: Tensor, flip: bool = False) -> CodeBatch:
        """As in the base: what a store in float32 would hold, a posterior's sample by the row's own draws."""
        if flip and not self.latents.flip:
            raise ValueError("there are no mirrors; set latents.flip=true")
        crops = tuple(self.latents.crops)
        parts, conditions = [], []
        for rows in indices.split(self.latents.batch):
            view = next(islice(self.images.views(rows, crops, flip), int(flip), None))
            parts.append(self.encoder.view(view, rows, int(flip)))
            conditions.append(view.condition)
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return code_batch(tensors, None if conditions[0] is None else Condition.cat(conditions))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"encoder": None}  # processes that read images leave it to the one that trains


def open_codes(folder: Path, recipe: Recipe, accelerator: Accelerator, captions: Captions | None = None) -> CodeSource:
    """The codes of the training images, by the folder that `encode_dataset` wrote: stored there, or encoded anew."""
    if recipe.latents.store:
        return LatentStore(folder, captions)
    return open_images(folder, recipe, accelerator, captions=captions)


def open_images(
    folder: Path, recipe: Recipe, accelerator: Accelerator, split: str = "train", captions: Captions | None = None
) -> EncodedImages:
    """A split of the recipe's images, encoded by the tokenizer in the folder that `encode_dataset` wrote."""
    images = Images(recipe.data, split, captions)
    networks = FrozenNetworks(recipe, images, folder, accelerator)
    feature = networks.load(ClassToken(recipe)) if recipe.latents.class_token is not None else None
    tokenizer = load_component(find("tokenizers", recipe.tokenizer.model["kind"]), folder / "tokenizer")
    plan = EncodingPlan(recipe.latents, recipe.seed, recipe.precision.latents, {}, feature)
    encoder = Encoder(tokenizer, plan, accelerator.device)
    return EncodedImages(folder, read_json(folder / MANIFEST), images, encoder)
