"""`reconstruct RUN|FOLDER OUT images=PICTURES`: pictures through a tokenizer and back, with the PSNR of each."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.components import structure
from pipeline.datasets.base import DAMAGED, BrokenImage, decode
from pipeline.editing.pictures import Pictures, prepare
from pipeline.files.listing import Lister, readable_name
from pipeline.files.paths import given_path
from pipeline.files.writing import new_file
from pipeline.images.eight_bits import levels
from pipeline.images.rendering import rendered
from pipeline.images.stored_pixels import as_picture, to_pixels
from pipeline.metrics.psnr import CEILING, psnr
from pipeline.nn.image_size import ImageShape, sides_of, size_text
from pipeline.ranges import Count, ImageSize, RangedFields
from pipeline.recipes.arithmetic import Precision
from pipeline.recipes.files import parse_settings
from pipeline.runs.finished import run_folder, tokenizer_of
from pipeline.runs.machine import accelerate, check_precision
from pipeline.runs.precision import arithmetic
from pipeline.saved_folders import INDEX, is_tokenizer, load_tokenizer_or_stock

log = logging.getLogger(__name__)


@dataclass
class ReconstructSettings(RangedFields):
    """What `run.py reconstruct` takes."""

    images: str  # folder of pictures, with its subfolders, or one picture
    size: ImageSize | None = None  # of the images, for a stock autoencoder of diffusers alone
    batch: Count = 16
    precision: Precision = "fp32"


@dataclass(frozen=True)
class PictureFile:
    """A picture, and where its reconstruction goes."""

    name: str  # relative to the folder of pictures
    source: Path
    target: Path


def reconstruct(words: list[str]) -> None:
    """Encode pictures and decode them again, into PNG files of the same names in the new folder OUT.

    The tokenizer is a run's, a pipeline's, an imported one or a stock autoencoder's folder. Pictures are made ready as
    training images are: upright, over white, resized and cropped at the centre. Prints the PSNR of each, of 8 bits;
    one that cannot be read is named and left out.
    """
    if len(words) < 2 or "=" in words[1]:
        raise ValueError(
            "reconstruct needs a tokenizer and a folder to write to: reconstruct RUN|FOLDER OUT images=FOLDER"
        )
    source, out, *overrides = words
    asked = structure(ReconstructSettings, parse_settings(overrides))
    check_precision(asked.precision)
    files = find_pictures(given_path(asked.images), new_folder_path(out))
    accelerator = accelerate()
    if accelerator.num_processes > 1:
        raise ValueError("pictures are reconstructed by one process; run it without torchrun")
    tokenizer = load_tokenizer_of(source, asked.size).to(accelerator.device)
    values: list[float] = []
    with tqdm(total=len(files), desc="reconstructing", unit="image") as bar, torch.no_grad():
        for batch, pictures in read_batches(files, asked.batch, tokenizer.image_shape):
            with arithmetic(accelerator.device, asked.precision):
                rebuilt = rendered(tokenizer, tokenizer.encode(pictures.images.to(accelerator.device))).cpu()
            values += write(batch, pictures.images, rebuilt)
            bar.update(len(batch))
    if not values:
        raise ValueError(f"not one picture of {asked.images} can be read")
    print(f"mean PSNR of {len(values)} images: {sum(values) / len(values):.2f} dB; reconstructions in {out}")


def new_folder_path(path: str) -> Path:
    """The path of a folder to write to; ValueError where something is there."""
    out = given_path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{path} is there already and not empty; give another folder for the reconstructions")
    return out


def find_pictures(source: Path, out: Path) -> list[PictureFile]:
    """The pictures of a folder, or the one; ValueError where there are none, or two with the same name for a PNG."""
    if source.is_dir():
        names = Lister().list_images(source).files
        files = [PictureFile(name, source / name, (out / name).with_suffix(".png")) for name in names]
    else:
        files = [PictureFile(source.name, source, out / f"{source.stem}.png")]
    if not files or not source.exists():
        raise ValueError(f"images={readable_name(source)} holds no picture that Pillow can read")
    first: dict[Path, str] = {}
    for file in files:
        if (other := first.setdefault(file.target, file.name)) != file.name:
            raise ValueError(f"{other} and {file.name} would both be {file.target.name}; rename one of them")
    return files


def load_tokenizer_of(source: str, size: int | list[int] | None) -> nn.Module:
    """The tokenizer of a run, of a pipeline's folder or of its own; ValueError where `source` is none of these.

    `size` is that of the images of a stock autoencoder, which does not tell it; ValueError where it is missing.
    """
    run = run_folder(source)
    folder = given_path(source) if run is None else tokenizer_of(run)
    folder = folder / "tokenizer" if (folder / INDEX).is_file() else folder
    if not (folder / "config.json").is_file():
        raise ValueError(f"{source} is neither a run nor the folder of a pipeline or of a tokenizer")
    if size is None and not is_tokenizer(folder):
        raise ValueError(f"{source} holds a stock autoencoder, for images of any size; state size=PIXELS")
    tokenizer = load_tokenizer_or_stock(folder, size)
    if size is not None and sides_of(size) != tokenizer.image_shape[1:]:
        raise ValueError(
            f"the tokenizer is for images of {size_text(tokenizer.image_shape[1:])} pixels; leave size out"
        )
    if tokenizer.can.captions:
        raise ValueError(
            f"the tokenizer of {source} reads captions, and files of pictures come without; encode and decode by its"
            " pipeline (pipe.encode and pipe.decode with the condition of pipe.encode_prompt), or measure it on the"
            " run's own images: card"
        )
    return tokenizer


def read_picture(path: Path, shape: ImageShape) -> Pictures:
    """A picture made ready; BrokenImage, naming it, where that fails."""
    name = readable_name(path)
    picture = decode(path, name)
    try:
        return prepare(picture, shape)
    except DAMAGED as error:
        raise BrokenImage(f"{name}: {' '.join(str(error).split())}") from error


def read_batches(
    files: list[PictureFile], count: int, shape: ImageShape
) -> Iterator[tuple[list[PictureFile], Pictures]]:
    """Batches of `count` pictures made ready; those that cannot be read are named and left out."""
    batch: list[tuple[PictureFile, Pictures]] = []
    for file in files:
        try:
            batch.append((file, read_picture(file.source, shape)))
        except BrokenImage as error:
            log.warning("left out %s", error)
        if len(batch) == count or batch and file is files[-1]:
            yield [file for file, _ in batch], Pictures.join([pictures for _, pictures in batch])
            batch = []


def write(files: list[PictureFile], images: Tensor, rebuilt: Tensor) -> list[float]:
    """Write the reconstructions and print the PSNR of each, which are returned."""
    values = psnr(levels(images), levels(rebuilt)).clamp(max=CEILING).tolist()
    for file, pixels, value in zip(files, to_pixels(rebuilt), values):
        with new_file(file.target) as draft:
            as_picture(pixels).save(draft)
        tqdm.write(f"{file.name}  {value:.2f} dB")
    return values
