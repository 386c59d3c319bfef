"""What a call of a pipeline makes: new images, or given ones anew, as a whole or within a mask."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.code import Code, Condition
from pipeline.components import conform
from pipeline.editing.pictures import read_masks, read_pictures
from pipeline.images.stored_pixels import Depth
from pipeline.nn.image_size import ImageShape
from pipeline.objectives.base import Objective
from pipeline.ranges import FractionAboveZero, Whole
from pipeline.samplers.original import Original
from pipeline.samplers.request import SamplingRequest

STRENGTH = 0.8  # of an edit without a mask; with one, what it shows is new


class NewImages:
    """Images from noise alone, and what an edit does otherwise."""

    def count(self, num_images: int | None) -> int | None:
        """The number of images, where the images that are given tell it."""
        return num_images

    def encoded(self, pipe: Any, count: int, condition: Condition | None) -> "NewImages":
        """The same with the codes of `count` images, by a LatentPipeline; `condition` has a row for each."""
        return self

    def sample(self, objective: Objective, request: SamplingRequest, settings: Any) -> Code:
        return objective.sample(request, settings)

    def restore(self, code: Code) -> Code:
        """The code of an interrupted sampling, with what an edit keeps."""
        return code

    def finish(self, images: Tensor) -> Tensor:
        """The images [B, C, H, W] to be shown, of those that were decoded."""
        return images


@dataclass(frozen=True)
class EditedImages(NewImages):
    """Given images that are made anew."""

    images: Tensor  # [B, C, H, W] in [-1, 1]
    strength: float  # 1 is a new image, near 0 the old one
    repainted: Tensor | None = None  # [B, 1, H, W] bool; None: all pixels
    blur: int = 0  # pixels over which the repainted region fades into what is around it
    original: Original | None = None

    def count(self, num_images: int | None) -> int | None:
        if len(self.images) == 1:
            return num_images
        if num_images not in (None, len(self.images)):
            raise ValueError(f"there are {len(self.images)} images for num_images={num_images}; leave num_images out")
        return len(self.images)

    def encoded(self, pipe: Any, count: int, condition: Condition | None) -> "EditedImages":
        if pipe.scheduler is not None:
            raise ValueError("images are edited by the generator's own sampler; set pipe.scheduler = None")
        each, device = count // len(self.images), pipe._execution_device
        repeat = lambda rows: rows.repeat_interleave(each, dim=0).to(device)  # noqa: E731
        images = repeat(self.images)
        captioned = "encoder" in pipe.tokenizer.can.captions
        code = pipe.encode(images, condition) if captioned else pipe.encode(self.images).map(repeat)
        code = Code(ids=code.ids) if pipe.objective.discrete else Code(z=code.z)
        if self.repainted is None:
            return replace(self, images=images, original=Original(code, 1 - self.strength))
        kept = repeat(~pipe.tokenizer.tokens_within(self.repainted))
        original = Original(code, 1 - self.strength, kept)
        return replace(self, images=images, repainted=repeat(self.repainted), original=original)

    def sample(self, objective: Objective, request: SamplingRequest, settings: Any) -> Code:
        return objective.regenerate(request, self.original, settings)

    def restore(self, code: Code) -> Code:
        return self.original.restore(code)

    def finish(self, images: Tensor) -> Tensor:
        """Outside of the mask the given pixels, exactly so farther from it than `blur`."""
        if self.repainted is None:
            return images
        return torch.lerp(self.images, images, feather(self.repainted.to(images), self.blur))


def feather(mask: Tensor, blur: int) -> Tensor:
    """A mask [B, 1, H, W] of zeros and ones that falls to 0 over `blur` pixels around its ones, linearly at an edge."""
    if not blur:
        return mask
    mean = F.avg_pool2d(mask, 2 * blur + 1, stride=1, padding=blur, count_include_pad=False)
    return (2 * mean).clamp(max=1).maximum(mask)


def read_edit(image: Any, mask: Any, strength: float | None, blur: int, shape: ImageShape, depth: Depth) -> NewImages:
    """What a call with these arguments makes, for images of this shape and depth; ValueError where they do not fit."""
    if image is None:
        for name, given in (("mask", mask), ("strength", strength), ("mask_blur", blur or None)):
            if given is not None:
                raise ValueError(f"{name} is of an image that is edited; give image=..., or leave {name} out")
        return NewImages()
    if mask is None and blur:
        raise ValueError("mask_blur is of the edge of a mask; give mask=..., or leave it out")
    pictures = read_pictures(image, shape, depth)
    repainted = None if mask is None else read_masks(mask, shape, pictures.sizes)
    strength = (STRENGTH if mask is None else 1.0) if strength is None else strength
    strength = conform(strength, FractionAboveZero, "strength")
    return EditedImages(pictures.images, strength, repainted, conform(blur, Whole, "mask_blur"))
