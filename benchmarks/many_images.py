"""Measures the memory that `run.py sample` needs for few images and many, and kills and resumes it.

    python benchmarks/many_images.py [--few 2000] [--many 20000] [--threads 1]

A tiny untrained pipeline in a temporary folder samples images of 16 pixels in two steps, each from its own seed, which
leaves the cost of many images beside that of the networks: files, archive, grid and lists. Resident memory is the peak
of the whole process, by the operating system (Linux). The killed run is of the few images: SIGKILL once a third of them
is written, then the same command again. About two minutes on one core.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pipeline import LatentPipeline
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

RUN = Path(__file__).parents[1] / "run.py"
FLAT = 32.0  # target: the most megabytes by which the peak may grow from few images to many


def save_tiny_pipeline(folder: Path) -> None:
    """An untrained pipeline of four classes in `folder`."""
    torch.manual_seed(0)
    bottleneck = {"kind": "gaussian", "dim": 3}
    tokenizer = ConvAutoencoder(16, bottleneck, width=8, multipliers=[1, 2, 2], blocks=1, groups=4)
    network = DiffusionTransformer([4, 4], 3, 4, depth=1, width=32, heads=2)
    LatentPipeline(tokenizer, network, FlowMatching(), sampling={"steps": 2}).save_pretrained(folder)


def command(folder: Path, images: int, out: Path) -> list[str]:
    return [sys.executable, str(RUN), "sample", str(folder), f"images={images}", "batch=64", f"out={out}"]


def sample(folder: Path, images: int, out: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds and the peak of resident megabytes of a whole run."""
    start = time.perf_counter()
    child = subprocess.Popen(command(folder, images, out), env=environment, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"sampling {images} images ended with status {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1e3


def kill_sampling(folder: Path, images: int, out: Path, environment: dict[str, str]) -> int:
    """Kill a run once a third of the images is written; returns how many were."""
    child = subprocess.Popen(command(folder, images, out), env=environment, stderr=subprocess.DEVNULL)
    while len(list(out.glob("[0-9]*.png"))) < images // 3:
        if child.poll() is not None:
            raise RuntimeError("the run ended before it could be killed; set more images with --few")
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    return len(list(out.glob("[0-9]*.png")))


def digests(out: Path) -> dict[str, str]:
    """sha256 of every image, of the archive and of the grid."""
    files = [*out.glob("*.png"), out / "samples.npz"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def report(name: str, value: float, most: float) -> None:
    print(f"{name:58}{value:12.3g}   target at most {most:g}: {'met' if value <= most else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"few": 2000, "many": 20_000, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "pipeline"
        save_tiny_pipeline(folder)
        peaks = []
        for images in (options.few, options.many):
            seconds, peak = sample(folder, images, Path(root) / str(images), environment)
            peaks.append(peak)
            print(f"{images:8} images: {seconds:7.1f} s, at most {peak:.1f} MB resident")
        report("megabytes of growth from few images to many", peaks[1] - peaks[0], FLAT)
        again = Path(root) / "again"
        written = kill_sampling(folder, options.few, again, environment)
        sample(folder, options.few, again, environment)
        whole, resumed = digests(Path(root) / str(options.few)), digests(again)
        differing = sum(resumed[name] != whole[name] for name in whole)
        report(f"files that differ after a kill at {written} images", differing, 0)


if __name__ == "__main__":
    main()
