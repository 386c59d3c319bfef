"""Times random reads of the store of codes, as in the training loop.

    python benchmarks/latent_reads.py [--codes 20000] [--shard 8192 500] [--views 1 2] [--batch 256] [--repeats 200]

Codes of 32 x 16 x 16 in half precision, 16 KiB each, without and with their mirrors, from a warm cache. A read is all
that `LatentStore.batch` does: choice of rows and views, gather, conversion to float32, labels. Beside it the bare
gather by which such stores are usually measured: one file, rows in half precision, nothing else. Target: a median of
100,000 codes per second; the fastest tenth is the speed while nothing else runs on the machine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.files.shards import write_manifest, write_shard
from pipeline.latents.store import FORMAT, LatentStore

TOKENS, DIM, CLASSES = 256, 32, 1000


def random_codes(count: int, views: int, generator: torch.Generator) -> dict[str, Tensor]:
    z = torch.randn(count, views, TOKENS, DIM, generator=generator).half()
    return {"z": z, "labels": torch.randint(CLASSES, (count,), generator=generator)}


def create_store(folder: Path, count: int, shard: int, views: int) -> LatentStore:
    """A store of random codes."""
    generator = torch.Generator().manual_seed(0)
    counts = [min(shard, count - first) for first in range(0, count, shard)]
    manifest = {
        "format": FORMAT,
        "flip": views == 2,
        "views": views,
        "spec": {"grid": [16, 16], "dim": DIM},
        "class_names": [str(number) for number in range(CLASSES)],
        "shards": counts,
    }
    write_manifest(folder, manifest)
    for number, rows in enumerate(counts):
        write_shard(folder, manifest, number, random_codes(rows, views, generator))
    return LatentStore(folder)


def codes_per_second(read: Callable[[Tensor, Tensor], object], count: int, batch: int, repeats: int) -> str:
    """Median and fastest tenth over random batches, after a pass over all codes, as two cells."""
    for rows in torch.arange(count).split(batch):
        read(rows, rows)
    times = []
    for _ in range(repeats):
        rows, seeds = torch.randint(count, (batch,)), torch.randint(2**62, (batch,))
        start = time.perf_counter()
        read(rows, seeds)
        times.append(time.perf_counter() - start)
    return f"{batch / statistics.median(times):>12,.0f}{batch / statistics.quantiles(times, n=10)[0]:>16,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, default=20_000)
    parser.add_argument("--shard", type=int, nargs="+", default=[8192, 500])
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2], help="codes per image: 20 for two crop factors")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    whole = random_codes(options.codes, 1, torch.Generator().manual_seed(0))["z"].numpy()
    bare = codes_per_second(lambda rows, seeds: whole[rows.numpy()], options.codes, options.batch, options.repeats)
    print(f"{'codes per second':<40}{'median':>12}{'fastest tenth':>16}")
    print(f"{'bare gather in memory, half precision':<40}{bare}")
    for shard in options.shard:
        for views in options.views:
            with tempfile.TemporaryDirectory() as folder:
                read = create_store(Path(folder), options.codes, shard, views).batch
                cells = codes_per_second(read, options.codes, options.batch, options.repeats)
            name = f"store, shards of {shard}, {views} view{'s' if views > 1 else ''}"
            print(f"{name:<40}{cells}")


if __name__ == "__main__":
    main()
