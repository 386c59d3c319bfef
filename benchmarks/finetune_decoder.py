"""Trains the decoder of a small AutoencoderKL, which has seen drawings alone, further on tiles of photographs.

    python benchmarks/finetune_decoder.py [--base 800] [--steps 400] [--folder runs/finetune_decoder]

The autoencoder (three levels, stride 4, 4 channels) is trained whole on OpenMoji's pictures (the extra `demo`), by the
recipe finetune_decoder with train=all. Then its decoder alone is trained further on tiles of 32 px of photographs that
come with scikit-learn and, where it is installed, scikit-image; two whole photographs are held out. Printed are the
numbers of held-out tiles before and after, by the terms that the decoder was trained by, and whether the encoder of
what `export` writes is that of before to the bit. Where LPIPS's weights are not on this machine, the perceptual
distance is that in a small network of the tiles, trained by another seed than the one in the loss; its name says which.
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from sklearn.datasets import load_sample_images

ROOT = Path(__file__).parents[1]
TILE = 32
HELD_OUT = ("china", "chelsea")
OF_SCIKIT_IMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
MAIN = "tokenizer.phases.main"
SMALL = {  # for tiles, and minutes of one core
    "data.size": str(TILE),
    f"{MAIN}.loop.batch": "16",
    f"{MAIN}.loop.warmup": "20",
    f"{MAIN}.loop.ema": "0.98",
    f"{MAIN}.loop.lr.tokenizer": "3.0e-4",
}
NO_PERCEPTUAL = {f"{MAIN}.losses.perceptual": "null", f"{MAIN}.weights.perceptual": "null"}
NO_CRITIC = {f"{MAIN}.adversary": "null", f"{MAIN}.weights.adversarial": "null", f"{MAIN}.loop.lr.critic": "null"}
CRITIC = {f"{MAIN}.adversary": "{critic: {kind: patch, layers: 2, width: 32}, start: 100}"}
TERMS = {  # settings of the trainings that are compared
    "pixel": NO_PERCEPTUAL | NO_CRITIC,
    "pixel, perceptual": NO_CRITIC,
    "pixel, perceptual, critic": CRITIC,
}
BASE = {
    "data.source": "{kind: emoji}",
    "data.crop": "center",
    "tokenizer.model": "{kind: pretrained, path: base, divergence: true, dim: null, stride: null}",
    f"{MAIN}.train": "all",
    f"{MAIN}.weights.kl": "1.0e-6",
    f"{MAIN}.loop.lr.tokenizer": "1.0e-3",
}
FURTHER = {
    "data.source.path": "tiles",
    "tokenizer.model": "{kind: pretrained, path: drawings, dim: null, stride: null}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=int, default=800, help="steps of the autoencoder's own training")
    parser.add_argument("--steps", type=int, default=400, help="steps of its decoder's further training")
    parser.add_argument("--folder", type=Path, default=Path("runs/finetune_decoder"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    counts = write_tiles(options.folder / "tiles")
    print(f"{counts['train']} tiles to train on, {counts['val']} held out")
    if not (options.folder / "drawings").exists():
        make_base(options.folder, options.base)
    rows = []
    for terms, settings in TERMS.items():
        name = terms.replace(", ", "_")
        run(options.folder, "all", name, options.steps, FURTHER | settings)
        rows.append((terms, read_numbers(options.folder / "runs" / name), is_encoder_unchanged(options.folder, name)))
    print_table(rows)


def write_tiles(folder: Path) -> dict[str, int]:
    """Tiles of every photograph side by side, below train/ and val/; returns how many."""
    photographs = {Path(file).stem: image for file, image in zip(*sample_images())}
    if (spec := find_spec("skimage")) is not None:
        for file in OF_SCIKIT_IMAGE:
            with Image.open(Path(spec.origin).parent / "data" / file) as image:
                photographs[Path(file).stem] = np.asarray(image.convert("RGB"))
    counts = {"train": 0, "val": 0}
    for name, pixels in photographs.items():
        split = "val" if name in HELD_OUT else "train"
        (folder / split).mkdir(parents=True, exist_ok=True)
        for top in range(0, pixels.shape[0] - TILE + 1, TILE):
            for left in range(0, pixels.shape[1] - TILE + 1, TILE):
                tile = Image.fromarray(pixels[top : top + TILE, left : left + TILE])
                tile.save(folder / split / f"{name}_{top}_{left}.png")
                counts[split] += 1
    return counts


def sample_images() -> tuple[list[str], list[np.ndarray]]:
    """Those of scikit-learn."""
    samples = load_sample_images()
    return samples.filenames, samples.images


def make_base(folder: Path, steps: int) -> None:
    """The autoencoder that has seen drawings alone, in the folder `drawings`, by a training from random weights."""
    torch.manual_seed(0)
    widths = (32, 64, 64)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=widths,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=TILE,
    ).save_pretrained(folder / "base")
    run(folder, "train-tokenizer", "base", steps, NO_PERCEPTUAL | NO_CRITIC | BASE)
    command(folder, "export", "runs/base", "drawings", "part=vae")


def run(folder: Path, stages: str, name: str, steps: int, settings: dict[str, str]) -> None:
    stated = SMALL | settings | {"name": name, f"{MAIN}.loop.steps": str(steps)}
    command(folder, stages, "finetune_decoder", *(f"{setting}={value}" for setting, value in stated.items()))


def command(folder: Path, *words: str) -> None:
    subprocess.run([sys.executable, str(ROOT / "run.py"), *words], cwd=folder, check=True)


def read_numbers(run: Path) -> dict[str, dict]:
    numbers = json.loads((run / "report" / "metrics.json").read_text())
    seconds = json.loads((run / "tokenizer" / "made_from.json").read_text())["seconds"]
    return numbers | {"seconds": {"value": seconds}}


def is_encoder_unchanged(folder: Path, name: str) -> bool:
    """Whether the exported autoencoder has the encoder of before, to the bit, and another decoder."""
    out = folder / f"exported_{name}"
    if not out.exists():
        command(folder, "export", f"runs/{name}", out.name, "part=vae")
    before, after = (AutoencoderKL.from_pretrained(path).state_dict() for path in (folder / "drawings", out))
    same = {key: torch.equal(weight, after[key]) for key, weight in before.items()}
    of_encoder = [equal for key, equal in same.items() if key.startswith(("encoder.", "quant_conv."))]
    return all(of_encoder) and not all(same.values())


def print_table(rows: list[tuple[str, dict[str, dict], bool]]) -> None:
    keys = [key for key in rows[0][1] if "before" in rows[0][1][key]]
    print(f"| terms | {' | '.join(rows[0][1][key]['title'] for key in keys)} | training, s | encoder |")
    print(f"|---|{'---|' * len(keys)}---|---|")
    for terms, numbers, unchanged in rows:
        cells = [f"{numbers[key]['before']:.4g} -> {numbers[key]['value']:.4g}" for key in keys]
        told = "unchanged" if unchanged else "changed"
        print(f"| {terms} | {' | '.join(cells)} | {numbers['seconds']['value']:.0f} | {told} |")


if __name__ == "__main__":
    main()
