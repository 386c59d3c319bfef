"""Times reading a folder of JPEGs by worker processes: encoding it, and the time that a training waits for it.

    python benchmarks/reading.py [--images 512] [--size 256] [--workers 0 1 2] [--width 64] [--steps 12] [--batch 32]

The pictures are made for it: smooth noise with grain, shorter side `--size` to 1.5 times that, quality 90. `read` is
`Images.plain` alone; `encode` is what `encode_dataset` does, by an autoencoder of patches of an eighth of the side, one
block and `--width` channels, so small that nearly all is reading, as it is beside a GPU; `wait` is the fraction of its
time for which a training of that autoencoder waited for images. It needs a core for each worker, and one more.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image

from pipeline.components import build
from pipeline.images.ahead import read_plain
from pipeline.images.reading import Images
from pipeline.latents.encoding import EncodingPlan, encode
from pipeline.recipes.data import Data
from pipeline.recipes.latents import Latents
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.training.loop import TrainingRun, train
from pipeline.training.reconstruction import Reconstruction


def write_pictures(folder: Path, count: int, size: int) -> None:
    """JPEGs in two class folders."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        height, width = (size + (torch.rand(2, generator=generator) * size / 2).long()).tolist()
        coarse = torch.rand(1, 3, 12, 12, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
        pixels = smooth + 0.06 * torch.randn(3, height, width, generator=generator)
        picture = pixels.clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / "ab"[number % 2] / f"{number:05d}.jpg", quality=90)


def images_of(folder: Path, size: int, workers: int) -> Images:
    source = {"kind": "image_folder", "path": str(folder), "held_out": 0.0}
    images = Images(Data(source, size, workers=workers), "train")
    images.in_memory = False  # as in a folder that is larger than memory
    return images


def autoencoder(size: int, width: int) -> torch.nn.Module:
    node = {"kind": "vit_autoencoder", "width": width, "depth": 1, "heads": 4, "patch_size": size // 8}
    torch.manual_seed(0)
    return build("tokenizers", node | {"bottleneck": {"kind": "gaussian", "dim": 4}}, image_size=size)


def seconds_of_reading(images: Images, batch: int) -> float:
    start = time.perf_counter()
    for _ in read_plain(images, torch.arange(len(images)).split(batch)):
        pass
    return time.perf_counter() - start


def seconds_of_encoding(images: Images, options: argparse.Namespace) -> float:
    plan = EncodingPlan(Latents(posterior="mode", batch=options.batch), 0, "fp32")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        encode(autoencoder(options.size, options.width), images, plan, Path(out), Accelerator(cpu=True))
    return time.perf_counter() - start


def waiting(images: Images, options: argparse.Namespace, workers: int) -> float:
    """The fraction of a training's time in which it waited for images, after its first steps."""
    loop = Loop(options.steps, {"tokenizer": 1e-3}, batch=options.batch, save_every=0, log_every=options.steps // 2)
    phase = Phase(loop, {"pixel": 1.0, "kl": 1e-6})
    task = Reconstruction(
        autoencoder(options.size, options.width), phase, {"pixel": build("losses", {"kind": "pixel"})}
    )
    with tempfile.TemporaryDirectory() as out:
        train(task, images, TrainingRun(loop, Path(out), 0, Accelerator(cpu=True), workers))
        return json.loads((Path(out) / "metrics.jsonl").read_text().splitlines()[-1])["wait"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), options.images, options.size)
        print(f"{options.images} JPEGs, {options.size} px, batches of {options.batch}, {options.threads} threads")
        print(f"{'workers':>8}{'read':>12}{'encode':>12}{'wait':>8}   (images a second; fraction of a training)")
        for workers in options.workers:
            images = images_of(Path(folder), options.size, workers)
            read = len(images) / seconds_of_reading(images, options.batch)
            encoded = len(images) / seconds_of_encoding(images, options)
            print(f"{workers:>8}{read:>12.0f}{encoded:>12.0f}{waiting(images, options, workers):>8.2f}", flush=True)


if __name__ == "__main__":
    main()
