"""A folder of numbered images, with one archive and one grid of all of them."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.files.writing import new_file
from pipeline.images.archives import map_array
from pipeline.images.grids import captioned, make_grid
from pipeline.images.stored_pixels import read_picture

GRID_ROWS, GRID_COLUMNS = 8, 8  # at most


def image_file(folder: Path, i: int) -> Path:
    """The file of image i: 000000.png, 000001.png, ..."""
    return folder / f"{i:06d}.png"


def write_archive(path: Path, images: list[Path], labels: list[int]) -> None:
    """arr_0 [N, H, W, C], uint8 or uint16, and arr_1 int64 [N] (-1: no class); of RGB as ADM's evaluator reads.

    One image is in memory at a time.
    """
    first = read_pixels(images[0])
    with new_file(path) as draft, zipfile.ZipFile(draft, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": first.dtype.str, "fortran_order": False, "shape": (len(images), *first.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for image in images:
                file.write(read_pixels(image).tobytes())
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, np.asarray(labels, dtype=np.int64))


def read_pixels(image: Path) -> np.ndarray:
    """[H, W, C] of uint8 or uint16; ValueError that says what to delete where the file is damaged."""
    try:
        return read_picture(image)
    except (OSError, SyntaxError) as error:  # Pillow's own for a file that is cut or that is no image
        raise ValueError(f"{image} is damaged ({error}); delete it, and the same command makes it again") from None


def open_archive(path: Path) -> np.ndarray:
    """arr_0 [N, H, W, C] of an archive: mapped into memory where it is not compressed, else read whole.

    Raises ValueError where the archive has no arr_0 of grey, RGB or RGBA images, or one that its file cannot hold.
    """
    pixels = map_array(path, "arr_0")
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 4 or pixels.shape[3] not in (1, 3, 4):
        raise ValueError(f"{path}: arr_0 is {pixels.dtype} {list(pixels.shape)}; images are uint8 [N, H, W, 3]")
    return pixels


def write_grid(out: Path, num_classes: int, images: Sequence[Path], captions: Sequence[str] | None = None) -> None:
    """grid.png of the first images, a column a class where there are few classes, or each above its caption."""
    columns = num_classes if 1 < num_classes <= 2 * GRID_COLUMNS and captions is None else GRID_COLUMNS
    columns = min(columns, len(images))
    shown = images[: columns * GRID_ROWS]
    with new_file(out / "grid.png") as draft:
        if captions is None:
            make_grid([Image.open(image) for image in shown], columns).save(draft)
        else:
            captioned(np.stack([read_pixels(image) for image in shown]), captions, columns).save(draft)
