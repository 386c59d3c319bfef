"""One image made ready: any mode as RGB, grey or RGBA, resized, and cropped to an aspect ratio."""

import numpy as np
from PIL import Image, ImageOps

from pipeline.nn.image_size import Sides

RESIZE = {name: Image.Resampling[name.upper()] for name in ("bicubic", "lanczos", "bilinear", "box", "nearest")}
SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def convert(image: Image.Image, channels: str, depth: int = 8) -> Image.Image:
    """Any mode as 8-bit RGB, L (`grey`) or RGBA, or with a depth of 16 as F of levels up to 65535, which is grey.

    What is transparent is over white, but in RGBA. Raises ValueError for values outside of their span.
    """
    if depth == 16:
        return to_sixteen_bits(image)
    return {"rgb": to_rgb, "grey": to_grey, "rgba": to_rgba}[channels](image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB, upright by its EXIF orientation, what is transparent over white.

    16-bit grey (and Pillow's I, which holds it) is divided by 257; a level or colour of 16 bits that stands for what is
    transparent is found in them. Floats have no stated white: up to 1 they are taken
    as [0, 1], else as [0, 255]. Colour profiles are not applied. Raises ValueError for values outside of these.
    """
    image = _eight_bits(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_grey(image: Image.Image) -> Image.Image:
    """As `to_rgb`, as one channel: the luma of ITU-R 601, which leaves levels of grey images as they are."""
    return to_rgb(image).convert("L")


def to_rgba(image: Image.Image) -> Image.Image:
    """As `to_rgb`, with alpha: 255 where nothing is transparent. Colours are not multiplied by it."""
    return _eight_bits(image).convert("RGBA")


def to_sixteen_bits(image: Image.Image) -> Image.Image:
    """Levels of grey from 0 to 65535, as F: those of 16-bit images as they are, of 8-bit ones times 257."""
    image = ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BIT:
        levels = np.asarray(image).astype(np.float32)
        return _checked(np.where(levels == image.info.get("transparency"), 65535, levels), 65535, "16 bits")
    if image.mode == "F":
        values = np.asarray(image)
        white = 1 if values.max() <= 1 else 255
        return _checked(values * np.float32(65535 / white), 65535, "[0, 1] or [0, 255]")
    return Image.fromarray(np.asarray(to_grey(image)).astype(np.float32) * 257)


def _eight_bits(image: Image.Image) -> Image.Image:
    """An upright image of 8-bit channels: RGBA where something may be transparent, else any mode."""
    image = ImageOps.exif_transpose(image)
    key = image.info.get("transparency")
    if image.mode in SIXTEEN_BIT:
        levels = np.asarray(image).astype(np.float64)
        grey = Image.fromarray(np.rint(np.asarray(_checked(levels / 257, 255, "16 bits"))).astype(np.uint8))
        if key is None:
            return grey
        return Image.merge("LA", (grey, Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8)))).convert(
            "RGBA"
        )
    if image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        values = _checked(values * 255 if values.max() <= 1 else values, 255, "[0, 1] or [0, 255]")
        return Image.fromarray(np.rint(np.asarray(values)).astype(np.uint8))
    if isinstance(key, tuple) and max(key) > 255:  # Pillow keeps the upper 8 bits of colours of 16
        image.info["transparency"] = tuple(level >> 8 for level in key)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        if image.mode in ("La", "RGBa"):  # premultiplied
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        return image.convert("RGBA")
    return image


def _checked(values: np.ndarray, white: float, span: str) -> Image.Image:
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= white):
        raise ValueError(f"its values are outside of {span}")
    return Image.fromarray(values.astype(np.float32))


def fit(image: Image.Image, box: Sides, resize: str) -> Image.Image:
    """Resized until it just covers a box (height, width), smaller images enlarged.

    As guided-diffusion prepares ImageNet (image_datasets.py, `center_crop_arr`): halved by box averages while at least
    twice too large, then resampled with antialiasing. `nearest` goes there in one step and mixes no pixels. Pillow
    resamples RGBA with colours multiplied by alpha, so that what is transparent lends no colour to its neighbours.
    Raises ValueError for an image without pixels, or so thin that it would come out larger than Pillow opens.
    """
    height, width = box
    scale = max(height / max(image.height, 1), width / max(image.width, 1))
    if min(image.size) < 1 or scale**2 * image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels cannot be made {width}x{height}")
    while resize != "nearest" and image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    target = tuple(max(least, round(side * scale)) for least, side in zip((width, height), image.size))
    return image if target == image.size else image.resize(target, RESIZE[resize])


def part(image: Image.Image, drawn: tuple[float, float, float], box: Sides, resize: str) -> Image.Image:
    """A part of an image, resized to a box (height, width) whose aspect ratio it has.

    `drawn` is its size as a fraction of the largest such part, and its place across and down.
    """
    fraction, *place = drawn
    height, width = box
    largest = min(image.width, image.height * width / height), min(image.height, image.width * height / width)
    sides = [max(1, round(fraction * side)) for side in largest]
    left, top = (
        min(int(at * (all_of - side + 1)), all_of - side) for at, all_of, side in zip(place, image.size, sides)
    )
    return image.resize((width, height), RESIZE[resize], box=(left, top, left + sides[0], top + sides[1]))


def pixels_of(image: Image.Image) -> np.ndarray:
    """[h, w, channels] uint8, or uint16 of F. Of RGBA, what is wholly transparent is white, whatever colour it has."""
    if image.mode == "F":
        return np.rint(np.asarray(image)).clip(0, 65535).astype(np.uint16)[..., None]  # filters overshoot
    pixels = np.asarray(image)
    if image.mode == "RGBA":
        pixels = np.where(pixels[..., 3:] == 0, np.uint8([255, 255, 255, 0]), pixels)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def crop(pixels: np.ndarray, box: Sides, place: tuple[float, float] | list[float] | None = None) -> np.ndarray:
    """A view [height, width, channels] of [h, w, channels]: the centre, or at `place` (across, down) in [0, 1]."""
    height, width = box
    across, down = pixels.shape[1] - width, pixels.shape[0] - height
    left, top = (
        (across // 2, down // 2) if place is None else (int(place[0] * (across + 1)), int(place[1] * (down + 1)))
    )
    left, top = min(left, across), min(top, down)  # where the place is 1
    return pixels[top : top + height, left : left + width]
