"""Times the Fréchet distance against scipy's matrix root, and watches the memory of running statistics.

    python benchmarks/frechet.py [--rounds 3] [--dim 2048] [--rows 4096] [--images 50000] [--threads 1]

The distance is of two sets of `rows` correlated rows, as features are, of `dim` numbers, first from covariances of full
rank, then from singular ones (fewer rows than numbers); the published route is |m1 - m2|^2 + tr(S1 + S2) - 2 tr of
scipy's `sqrtm(S1 @ S2)`, which is timed on full rank alone. The ways alternate in one process; seconds are medians, and
the ratio is the median of the rounds' ratios. Then the statistics of `images` images, moments of 2,048 and of 2,023
numbers and the inception score over 1,008 classes, in batches of 64: the growth of the process' memory from a tenth of
the images to all of them. About ten minutes with one thread, most of them scipy's.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from scipy.linalg import sqrtm
from torch import Generator, Tensor

from pipeline.features.moments import Moments, frechet_distance
from pipeline.measuring.image_statistics import gather_statistics

SLOWEST, CLOSEST, FLAT = 0.15, 1e-6, 8.0  # targets: share of the time, relative difference, megabytes
WIDTHS = {"pooled": 2048, "spatial": 2023, "logits": 1008}


def correlated(rows: int, dim: int, seed: int) -> Tensor:
    """[rows, dim], with the spectrum of features: directions whose variance falls as one over their number."""
    draws = Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=Generator().manual_seed(0), dtype=torch.float64) / dim**0.5
    scales = torch.arange(1, dim + 1, dtype=torch.float64) ** -0.5
    return torch.randn(rows, dim, generator=draws, dtype=torch.float64) * scales @ mixing + 0.01 * seed


def published(first: Moments, second: Moments) -> float:
    one, two = first.covariance, second.covariance
    root = torch.from_numpy(sqrtm((one @ two).numpy()).real)
    return ((first.mean - second.mean).square().sum() + (one + two - 2 * root).trace()).item()


def timed(way, *moments: Moments) -> tuple[float, float]:
    start = time.perf_counter()
    value = way(*moments)
    return time.perf_counter() - start, value


def distances(dim: int, rows: int, rounds: int) -> None:
    full = [Moments.of(correlated(rows, dim, seed)) for seed in (1, 2)]
    few = [Moments.of(correlated(dim // 2, dim, seed)) for seed in (1, 2)]
    ours, theirs, singular = [], [], []
    for turn in range(rounds):
        pairs = [(ours, frechet_distance), (theirs, published)]
        for found, way in pairs if turn % 2 else reversed(pairs):
            found.append(timed(way, *full))
        singular.append(timed(frechet_distance, *few))
    for name, found in (("ours", ours), ("ours, singular", singular), ("scipy's sqrtm", theirs)):
        print(f"{name:16}{statistics.median(seconds for seconds, _ in found):8.2f} s   distance {found[0][1]:.9g}")
    ratio = statistics.median(a / b for (a, _), (b, _) in zip(ours, theirs))
    report("time of the distance to that by sqrtm", ratio, SLOWEST)
    report("relative difference of the two", abs(ours[0][1] / theirs[0][1] - 1), CLOSEST)


def memory(images: int) -> None:
    """The growth of the process from a tenth of the images on, when nothing of an image is kept."""
    held: dict[int, float] = {}

    def measure(indices: Tensor) -> dict[str, Tensor]:
        held[int(indices[0])] = resident()
        draws = Generator().manual_seed(int(indices[0]))
        return {name: torch.randn(len(indices), width, generator=draws) for name, width in WIDTHS.items()}

    start = time.perf_counter()
    found = gather_statistics(
        Accelerator(cpu=True), images, measure, torch.arange(0), ["pooled", "spatial"], "logits", batch=64
    )
    seconds = time.perf_counter() - start
    print(f"statistics of {found.count} images: {seconds:.1f} s, inception score {found.score.value():.4f}")
    early = max(level for first, level in held.items() if first <= images // 10)
    report("megabytes of growth from a tenth of the images to all", max(held.values()) - early, FLAT)


def resident() -> float:
    """Megabytes of memory that the process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def report(name: str, found: float, most: float) -> None:
    print(f"{name:58}{found:12.3g}   target at most {most:g}: {'met' if found <= most else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"rounds": 3, "dim": 2048, "rows": 4096, "images": 50_000, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    memory(options.images)  # first, while the process has held nothing larger
    distances(options.dim, options.rows, options.rounds)


if __name__ == "__main__":
    main()
