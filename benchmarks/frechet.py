"""Times the Fréchet distance against scipy's matrix square root, and measures the memory of running statistics.

    python benchmarks/frechet.py [--rounds 3] [--dim 2048] [--rows 4096] [--images 50000] [--threads 1]

The distance is between two sets of `rows` feature vectors of `dim` correlated numbers, first with covariances of full
rank, then with singular ones (fewer vectors than numbers); the published formula is |m1 - m2|^2 + tr(S1 + S2) - 2 tr
sqrtm(S1 @ S2) with scipy's `sqrtm`, which is timed at full rank alone. The methods alternate in one process; seconds
are medians, and the ratio is the median of the rounds' ratios. Then the statistics of `images` images, moments of 2,048
and of 2,023 numbers and the inception score over 1,008 classes, in batches of 64: the growth of the process' memory
from a tenth of the images to all of them. About ten minutes on one thread, most of them in scipy.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from scipy.linalg import sqrtm
from torch import Generator, Tensor

from pipeline.features.moments import Moments, frechet_distance
from pipeline.features.passes import ImageRows
from pipeline.measuring.image_statistics import gather_statistics

SLOWEST, CLOSEST, FLAT = 0.15, 1e-6, 8.0  # targets: fraction of the time, relative difference, megabytes
WIDTHS = {"pooled": 2048, "spatial": 2023, "logits": 1008}


def random_features(rows: int, dim: int, seed: int) -> Tensor:
    """[rows, dim], with a spectrum like that of features: the k-th direction has a variance of 1 / k."""
    draws = Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=Generator().manual_seed(0), dtype=torch.float64) / dim**0.5
    scales = torch.arange(1, dim + 1, dtype=torch.float64) ** -0.5
    return torch.randn(rows, dim, generator=draws, dtype=torch.float64) * scales @ mixing + 0.01 * seed


def distance_by_root(first: Moments, second: Moments) -> float:
    one, two = first.covariance, second.covariance
    root = torch.from_numpy(sqrtm((one @ two).numpy()).real)
    return ((first.mean - second.mean).square().sum() + (one + two - 2 * root).trace()).item()


def timed(method: Callable[[Moments, Moments], float], *moments: Moments) -> tuple[float, float]:
    """Seconds, and the distance."""
    start = time.perf_counter()
    value = method(*moments)
    return time.perf_counter() - start, value


def distances(dim: int, rows: int, rounds: int) -> None:
    full = [Moments.of(random_features(rows, dim, seed)) for seed in (1, 2)]
    few = [Moments.of(random_features(dim // 2, dim, seed)) for seed in (1, 2)]
    ours, theirs, singular = [], [], []
    for turn in range(rounds):
        pairs = [(ours, frechet_distance), (theirs, distance_by_root)]
        for times, method in pairs if turn % 2 else reversed(pairs):
            times.append(timed(method, *full))
        singular.append(timed(frechet_distance, *few))
    for name, times in (("ours", ours), ("ours, singular", singular), ("scipy's sqrtm", theirs)):
        print(f"{name:16}{statistics.median(seconds for seconds, _ in times):8.2f} s   distance {times[0][1]:.9g}")
    ratio = statistics.median(a / b for (a, _), (b, _) in zip(ours, theirs))
    report("time, as a fraction of that with sqrtm", ratio, SLOWEST)
    report("relative difference of the two distances", abs(ours[0][1] / theirs[0][1] - 1), CLOSEST)


def memory(images: int) -> None:
    """The growth of the process from a tenth of the images on; no image's numbers may be kept."""
    megabytes: dict[int, float] = {}  # by the first image of a batch

    def measure(indices: Tensor) -> ImageRows:
        megabytes[int(indices[0])] = resident_megabytes()
        draws = Generator().manual_seed(int(indices[0]))
        rows = {name: torch.randn(len(indices), width, generator=draws) for name, width in WIDTHS.items()}
        return ImageRows(logits=rows.pop("logits"), summed=rows)

    start = time.perf_counter()
    result = gather_statistics(Accelerator(cpu=True), images, measure, torch.arange(0), batch=64)
    seconds = time.perf_counter() - start
    print(f"statistics of {result.count} images: {seconds:.1f} s, inception score {result.score.value():.4f}")
    early = max(value for first, value in megabytes.items() if first <= images // 10)
    report("megabytes of growth from a tenth of the images to all", max(megabytes.values()) - early, FLAT)


def resident_megabytes() -> float:
    """Of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def report(name: str, value: float, most: float) -> None:
    print(f"{name:58}{value:12.3g}   target at most {most:g}: {'met' if value <= most else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"rounds": 3, "dim": 2048, "rows": 4096, "images": 50_000, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    memory(options.images)  # first: later allocations would hide its growth
    distances(options.dim, options.rows, options.rounds)


if __name__ == "__main__":
    main()
