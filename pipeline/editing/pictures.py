"""Pictures and masks that a user gives to a pipeline, as the images that its tokenizer encodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.images.preparing import convert, crop, fit, pixels_of, to_rgb
from pipeline.images.stored_pixels import Depth, from_pixels
from pipeline.nn.image_size import ImageShape

Picture = Image.Image | np.ndarray | Tensor
CHANNELS = {1: "grey", 3: "rgb", 4: "rgba"}
RESIZE = "bicubic"  # as `data.resize` where a recipe does not state it
LARGEST = 2.0  # absolute value of an image in [-1, 1], which decoders exceed a little
WHITE = 0.5  # of a mask in [0, 1]: above it, a pixel is repainted


@dataclass(frozen=True)
class Pictures:
    """Pictures made ready."""

    images: Tensor  # [B, C, H, W] float32 in [-1, 1]
    sizes: list[tuple[int, int]]  # width and height of each as it was given, upright

    @classmethod
    def join(cls, parts: Sequence["Pictures"]) -> "Pictures":
        """All of them, in turn."""
        return cls(torch.cat([part.images for part in parts]), [size for part in parts for size in part.sizes])


def read_pictures(given: Picture | Sequence[Picture], shape: ImageShape, depth: Depth = 8) -> Pictures:
    """One picture or several for a tokenizer of images of this shape, of grey, RGB or RGBA, of 8 bits or (grey) of 16.

    PIL images and arrays of integers ([h, w], [h, w, C], [B, h, w, C]) are made ready as training images are: upright,
    what is transparent over white, resized until they cover the tokenizer's size and cropped at the centre. Arrays of
    floats ([h, w, C], [B, h, w, C]) hold [0, 1] and tensors ([C, h, w], [B, C, h, w]) hold [-1, 1]; they have that
    size.
    Raises ValueError with one line for anything else.
    """
    if isinstance(given, (list, tuple)) and given:
        return Pictures.join([read_pictures(one, shape, depth) for one in given])
    if isinstance(given, Image.Image):
        return prepare(given, shape, depth)
    if isinstance(given, np.ndarray) and given.dtype in (np.uint8, np.uint16):
        rows = given[None] if given.ndim == 2 or given.ndim == 3 and given.shape[2] in (3, 4) else given
        return Pictures.join([prepare(picture_of(row), shape, depth) for row in rows])
    if isinstance(given, np.ndarray) and given.dtype.kind == "f":
        rows = torch.tensor(given if given.ndim == 4 else given[None], dtype=torch.float32)
        return ready_made(rows.movedim(-1, 1) * 2 - 1, shape, "image of an array in [0, 1]")
    if isinstance(given, Tensor) and given.is_floating_point():
        return ready_made((given if given.ndim == 4 else given[None]).float(), shape, "image of a tensor in [-1, 1]")
    kind = f"{type(given).__name__} of {given.dtype}" if hasattr(given, "dtype") else repr(given)[:60]
    raise ValueError(
        f"image is {kind}; give a PIL image, an array of 8 bits, a tensor {as_batch(shape)} of floats in [-1, 1], or a"
        " list of such"
    )


def picture_of(pixels: np.ndarray) -> Image.Image:
    """An array of integers as a picture; ValueError where it is none."""
    if pixels.ndim not in (2, 3) or pixels.ndim == 3 and pixels.shape[2] not in (3, 4) or not pixels.size:
        raise ValueError(f"image is an array of {list(pixels.shape)}; give [height, width, 3]")
    return Image.fromarray(pixels)


def as_batch(shape: ImageShape) -> str:
    """How a message writes the shape of a batch."""
    return f"[B, {', '.join(map(str, shape))}]"


def prepare(picture: Image.Image, shape: ImageShape, depth: Depth = 8) -> Pictures:
    """A picture of any mode and size as training images are made ready, where `data.resize` is not stated."""
    channels, *sides = shape
    picture = convert(picture, CHANNELS[channels], depth)
    pixels = crop(pixels_of(fit(picture, sides, RESIZE)), sides)
    return Pictures(from_pixels(np.array(pixels[None])), [picture.size])


def ready_made(images: Tensor, shape: ImageShape, what: str) -> Pictures:
    """Images that have the tokenizer's size already, clipped to [-1, 1]; ValueError where they do not fit."""
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape) or not len(images):
        raise ValueError(
            f"the {what} is {list(images.shape)}; this pipeline takes {as_batch(shape)} (arrays: channels last),"
            " and resizes PIL images and arrays of 8 bits"
        )
    if not images.isfinite().all() or images.abs().max() > LARGEST:
        raise ValueError(
            f"the {what} would be from {images.min():g} to {images.max():g} in [-1, 1]; scale it to its range"
        )
    return Pictures(images.clamp(-1, 1).cpu(), [(shape[2], shape[1])] * len(images))


def read_masks(given: Any, shape: ImageShape, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Which pixels are repainted, [B, 1, H, W] bool: the white ones of one mask for all, or of one per image.

    A mask is a PIL image, an array of 8 bits ([h, w], [h, w, 3], [B, h, w]), or an array or tensor of bools or floats
    in [0, 1] ([h, w], [B, h, w], a tensor also [B, 1, h, w]). It has the size of its image as that was given, and is
    resized and cropped with it, or the size of the tokenizer's images. `sizes` are those of the images. Raises
    ValueError with one line.
    """
    masks = grey_pictures(given)
    if len(masks) not in (1, len(sizes)):
        raise ValueError(f"there are {len(masks)} masks for {len(sizes)} images; give one for all, or one per image")
    masks = masks * (len(sizes) // len(masks))
    for mask, size in zip(masks, sizes):
        if mask.size not in (size, (shape[2], shape[1])):
            raise ValueError(
                f"the mask has {mask.width}x{mask.height} pixels and its image {size[0]}x{size[1]}; give it the size of"
                f" the image, or {shape[2]}x{shape[1]}"
            )
    grey = Pictures.join([prepare(mask, (1, *shape[1:])) for mask in masks]).images
    return (grey + 1) / 2 > WHITE


def grey_pictures(given: Any) -> list[Image.Image]:
    """The masks that are given, as pictures; ValueError for what is no mask."""
    if isinstance(given, (list, tuple)) and given:
        return [picture for one in given for picture in grey_pictures(one)]
    if isinstance(given, Image.Image):
        return [to_rgb(given)]
    if isinstance(given, Tensor):
        given = given.detach().cpu().float().numpy() if given.is_floating_point() else given.cpu().numpy()
        given = given[:, 0] if given.ndim == 4 and given.shape[1] == 1 else given
    if isinstance(given, np.ndarray) and given.ndim == 3 and given.shape[2] in (3, 4) and given.dtype == np.uint8:
        return [to_rgb(Image.fromarray(given))]
    if not isinstance(given, np.ndarray) or given.ndim not in (2, 3) or not given.size:
        shape = f" of {list(given.shape)}" if hasattr(given, "shape") else ""
        raise ValueError(f"mask is a {type(given).__name__}{shape}; give a PIL image, or an array or tensor [h, w]")
    if given.dtype.kind == "f" and not (given.min() >= 0 and given.max() <= 1):
        raise ValueError(f"mask holds values from {given.min():g} to {given.max():g}; give [0, 1], 1 is repainted")
    if given.dtype.kind == "f" or given.dtype == bool:
        given = np.rint(given * 255.0).astype(np.uint8)
    if given.dtype != np.uint8:
        raise ValueError(f"mask is of {given.dtype}; give bools, 8 bits, or floats in [0, 1]")
    return [Image.fromarray(mask) for mask in (given if given.ndim == 3 else given[None])]
