"""Grids of images as one picture: originals above reconstructions, and samples class by class."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.images.preparing import to_rgb
from pipeline.images.stored_pixels import as_picture, to_pixels
from pipeline.nn.image_channels import as_rgb

TILE = 64  # pixels per side at least; smaller images are enlarged by whole numbers, each pixel staying a square
WIDTH = 1280  # pixels of a grid at most, as far as whole images allow
GAP, PAPER, INK = 2, (255, 255, 255), (70, 70, 70)
CAPTIONED, CAPTION, LINES = 96, 11, 3  # pixels of a side at least above a caption, of its letters, and its lines
AMPLIFIED = 5  # times the absolute difference, so that it can be seen


def columns(sides: Sequence[int]) -> int:
    """How many images of these sides (height, width) go beside each other."""
    return max(3, min(12, WIDTH // (sides[1] * enlargement(sides) + GAP)))


def enlargement(sides: Sequence[int]) -> int:
    """How many times larger images of these sides are shown."""
    return max(1, -(-TILE // min(sides)))


def reconstructions(images: Tensor, rebuilt: Tensor, before: Tensor | None = None) -> Image.Image:
    """Rows of images [B, C, H, W] in [-1, 1], their reconstructions, and the amplified absolute difference.

    Those of `before` a training stand above those after it, where they are given.
    """
    original, after = (to_pixels(as_rgb(each)) for each in (images, rebuilt))
    apart = np.abs(original.astype(np.int16) - after) * AMPLIFIED
    rows = {"original": original} | ({} if before is None else {"before training": to_pixels(as_rgb(before))})
    rows |= {"rebuilt": after, f"difference x{AMPLIFIED}": apart.clip(0, 255).astype(np.uint8)}
    return grid(list(rows.values()), list(rows))


def samples_by_class(images: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str]) -> Image.Image:
    """Pixels [N, H, W, C] in rows by label [N], ten classes at most; without labels in rows as they come."""
    across = columns(images.shape[1:3])
    if labels is None:
        shown = images[: 8 * across]
        return grid([shown[i : i + across] for i in range(0, len(shown), across)], [])
    there = np.unique(labels)
    chosen = there[np.linspace(0, len(there) - 1, min(10, len(there))).round().astype(int)]
    rows = [images[labels == label][:across] for label in chosen]
    return grid(rows, [class_names[label] for label in chosen])


def rows_of(images: Tensor, names: Sequence[str]) -> Image.Image:
    """[rows, n, C, H, W] in [0, 1], a row of images each with its name, if there are names."""
    return grid([to_pixels(as_rgb(row * 2 - 1)) for row in images], names)


def grid(rows: Sequence[np.ndarray], names: Sequence[str]) -> Image.Image:
    """Rows of uint8 or uint16 [n, H, W, C], as RGB over white, each with its name to the left."""
    height, width = rows[0].shape[1:3]
    times = enlargement((height, width))
    height, width = height * times, width * times
    font = ImageFont.load_default(14)
    margin = max((int(font.getlength(shorten(name))) + 12 for name in names), default=0)
    across = max(len(row) for row in rows)
    sheet = Image.new("RGB", (margin + across * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for down, row in enumerate(rows):
        top = down * (height + GAP)
        if names:
            pen.text((margin - 8, top + height // 2), shorten(names[down]), INK, font, anchor="rm")
        for i, pixels in enumerate(row):
            tile = to_rgb(as_picture(pixels)).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (margin + i * (width + GAP), top))
    return sheet


def shorten(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def captioned(images: np.ndarray, captions: Sequence[str], across: int) -> Image.Image:
    """Pixels [N, H, W, C] in rows of `across`, as RGB over white, each above its caption, cut to three lines."""
    times = max(1, -(-CAPTIONED // min(images.shape[1:3])))
    height, width = (side * times for side in images.shape[1:3])
    font = ImageFont.load_default(CAPTION)
    cell = height + LINES * (CAPTION + 3) + 8
    rows = -(-len(images) // across)
    sheet = Image.new("RGB", (min(across, len(images)) * (width + 8), rows * cell), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (pixels, caption) in enumerate(zip(images, captions)):
        left, top = i % across * (width + 8), i // across * cell
        sheet.paste(to_rgb(as_picture(pixels)).resize((width, height), Image.Resampling.NEAREST), (left, top))
        text = "\n".join(wrap(caption, width, font))
        pen.multiline_text((left, top + height + 2), text, INK, font, spacing=2)
    return sheet


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """The words of a text in lines of at most `width` pixels, the last of `LINES` with dots where more would follow."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = [*lines[: LINES - 1], f"{lines[LINES - 1]} …"] if len(lines) > LINES else lines
    return [line if font.getlength(line) <= width else fitting(line, width, font) for line in cut]


def fitting(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The beginning of a line that fits into `width` pixels."""
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


def tile(images: Sequence[Image.Image], across: int) -> Image.Image:
    """Images of one size beside each other, `across` in a row, without gaps and as large as they are."""
    width, height = images[0].size
    sheet = Image.new("RGB", (across * width, -(-len(images) // across) * height), PAPER)
    for i, image in enumerate(images):
        sheet.paste(to_rgb(image), (i % across * width, i // across * height))
    return sheet


def make_grid(images: list[Image.Image], columns: int) -> Image.Image:
    """Images of one size in rows of `columns`, as RGB over white; small ones are enlarged by whole numbers."""
    pixels = np.stack([np.asarray(to_rgb(image)) for image in images])
    return grid([pixels[i : i + columns] for i in range(0, len(pixels), columns)], [])
