"""Times precision and recall of many features by products of matrices against differences, and their peak memory.

    python benchmarks/neighbours.py [--images 5000] [--width 3072] [--threads 1] [--skip-differences]

Two sets of `images` rows of `width` numbers, as the pixels of 32 x 32 images are. Both ways are exact in float64: by
differences of all pairs in blocks of 1,024 rows (torch.cdist without products), as this library did, and by products,
with the differences of those pairs alone that these leave open. Each runs in a process of its own, whose peak memory is
without that of imports and the rows themselves; seconds are of the processor, so that other work beside does not count.
About six minutes on one thread, most of them by differences.
"""

import argparse
import multiprocessing
import resource
import time
from multiprocessing.queues import Queue

import torch
from torch import Generator, Tensor

from pipeline.metrics.precision_recall import precision_recall

FASTEST = 0.25  # target: fraction of the time by differences


def covered(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """`pipeline.metrics.precision_recall.covered` by differences."""

    def blocks(first: Tensor, second: Tensor):
        exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
        return (torch.cdist(block.double(), second.double(), **exact) for block in first.split(1024))

    reach = torch.cat([block.kthvalue(neighbours + 1, dim=1).values for block in blocks(manifold, manifold)])
    return torch.cat([(block <= reach).any(dim=1) for block in blocks(points, manifold)]).double().mean().item()


def by_differences(samples: Tensor, real: Tensor) -> tuple[float, float]:
    return covered(samples, real, 3), covered(real, samples, 3)


WAYS = {"differences": by_differences, "products": precision_recall}


def measure(way: str, images: int, width: int, threads: int, results: Queue) -> None:
    """Seconds of the processor, megabytes above those of the rows, and the two numbers."""
    torch.set_num_threads(threads)
    samples, real = (torch.randn(images, width, generator=Generator().manual_seed(seed)) for seed in (0, 1))
    before, start = peak_megabytes(), time.process_time()
    numbers = WAYS[way](samples, real)
    results.put((time.process_time() - start, peak_megabytes() - before, numbers))


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"images": 5000, "width": 3072, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--skip-differences", action="store_true")
    options = parser.parse_args()
    context, found = multiprocessing.get_context("spawn"), {}
    for way in [*WAYS][options.skip_differences :]:
        results = context.Queue()
        process = context.Process(target=measure, args=(way, options.images, options.width, options.threads, results))
        process.start()
        found[way] = results.get()
        process.join()
        seconds, megabytes, numbers = found[way]
        print(f"by {way:12}{seconds:8.1f} s {megabytes:8.0f} MB   precision, recall {numbers}", flush=True)
    if len(found) == 2:
        ratio = found["products"][0] / found["differences"][0]
        print(
            f"time by products over that by differences: {ratio:.3f}, target at most {FASTEST}; the numbers are",
            end=" ",
        )
        print("equal" if found["products"][2] == found["differences"][2] else "NOT EQUAL")


if __name__ == "__main__":
    main()
