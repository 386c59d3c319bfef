"""One image made ready: any mode as 8-bit RGB, resized, and cropped to a square."""

import numpy as np
from PIL import Image, ImageOps

RESIZE = {name: Image.Resampling[name.upper()] for name in ("bicubic", "lanczos", "bilinear", "box", "nearest")}
SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB, upright by its EXIF orientation, what is transparent over white.

    16-bit grey (and Pillow's I, which holds it) is divided by 257; a level or colour of 16 bits that stands for what is
    transparent is found in them. Floats have no stated white: up to 1 they are taken
    as [0, 1], else as [0, 255]. Colour profiles are not applied. Raises ValueError for values outside of these.
    """
    image = ImageOps.exif_transpose(image)
    key = image.info.get("transparency")
    if image.mode in SIXTEEN_BIT:
        levels = np.asarray(image).astype(np.float64)
        image = _grey(np.where(levels == key, 65535, levels) / 257, "16 bits")  # the key over white
    elif image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        image = _grey(values * 255 if values.max() <= 1 else values, "[0, 1] or [0, 255]")
    elif isinstance(key, tuple) and max(key) > 255:  # Pillow keeps the upper 8 bits of colours of 16
        image.info["transparency"] = tuple(level >> 8 for level in key)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        if image.mode in ("La", "RGBa"):  # premultiplied
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey(values: np.ndarray, span: str) -> Image.Image:
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
        raise ValueError(f"its values are outside of {span}")
    return Image.fromarray(np.rint(values).astype(np.uint8))


def fit(image: Image.Image, size: int, resize: str) -> Image.Image:
    """The shorter side at `size`, smaller images enlarged.

    As guided-diffusion prepares ImageNet (image_datasets.py, `center_crop_arr`): halved by box averages while at least
    twice too large, then resampled with antialiasing. `nearest` goes there in one step and mixes no pixels.
    Raises ValueError for an image without pixels, or so thin that it would come out larger than Pillow opens.
    """
    if min(image.size) < 1 or size**2 * max(image.size) / min(image.size) > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels cannot be made {size}x{size}")
    while resize != "nearest" and min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    target = tuple(max(size, round(side * scale)) for side in image.size)
    return image if target == image.size else image.resize(target, RESIZE[resize])


def part(image: Image.Image, box: tuple[float, float, float], size: int, resize: str) -> Image.Image:
    """A square at `size`: `box` is its side as a fraction of the image's shorter one, and its place across and down."""
    fraction, across, down = box
    side = max(1, round(fraction * min(image.size)))
    left, top = (
        min(int(place * (all_of - side + 1)), all_of - side) for place, all_of in zip((across, down), image.size)
    )
    return image.resize((size, size), RESIZE[resize], box=(left, top, left + side, top + side))


def crop(pixels: np.ndarray, size: int, place: tuple[float, float] | list[float] | None = None) -> np.ndarray:
    """A view [size, size, 3] of [h, w, 3]: the centre, or at `place` (across, down), each in [0, 1]."""
    across, down = pixels.shape[1] - size, pixels.shape[0] - size
    left, top = (
        (across // 2, down // 2) if place is None else (int(place[0] * (across + 1)), int(place[1] * (down + 1)))
    )
    left, top = min(left, across), min(top, down)  # where the place is 1
    return pixels[top : top + size, left : left + size]
