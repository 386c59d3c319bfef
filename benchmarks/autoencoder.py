"""Times encoding and decoding at the SD-VAE shape: ours in bf16 and channels-last, diffusers' AutoencoderKL in fp32.

    python benchmarks/autoencoder.py [--threads 2] [--size 128] [--images 4] [--runs 5] [--precision bf16]

Without --precision ours is in bf16 where the CPU has bf16 arithmetic, and in fp32 elsewhere, where bf16 is emulated and
slower.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.code import Code
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

SD_VAE = {"multipliers": [1, 2, 4, 4], "bottleneck": {"kind": "gaussian", "dim": 4}}
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=128, help="pixels per side")
    parser.add_argument("--images", type=int, default=4, help="images per call")
    parser.add_argument("--width", type=int, default=128, help="channels; fewer are a quick look at the same shape")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16" if has_bf16() else "fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    report(options)


def has_bf16() -> bool:
    """Whether this CPU has bf16 arithmetic."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@torch.inference_mode()
def report(options: argparse.Namespace) -> None:
    """Medians of alternating runs, and the error of the lower precision with the same weights."""
    size, images, runs, precision = options.size, options.images, options.runs, options.precision
    exact = ConvAutoencoder(image_size=size, width=options.width, **SD_VAE).eval()
    stock = exact.stock().model  # the same weights in diffusers' class
    fast = ConvAutoencoder(image_size=size, width=options.width, **SD_VAE).eval()
    fast.load_state_dict(exact.state_dict())
    fast = fast.type(dtype := PRECISIONS[precision]).to(memory_format=torch.channels_last)
    x = smooth_images(images, size)
    low = x.to(dtype, memory_format=torch.channels_last)
    code = exact.encode(x)
    maps = code.z.transpose(1, 2).unflatten(2, exact.spec.grid).contiguous()
    low_code = Code(z=code.z.to(dtype))

    print(f"{sum(p.numel() for p in stock.parameters()) / 1e6:.1f} M parameters, {images} images of {size} px,")
    print(f"{torch.get_num_threads()} threads, medians of {runs} alternating runs\n")
    if not has_bf16():
        print("this CPU has no bf16 arithmetic: the gain of bf16 on other machines cannot be measured here\n")
    print(f"{'':<8}{'diffusers fp32':>16}{'ours ' + precision:>12}{'ratio':>8}   (images per second)")
    for name, theirs, ours in (
        ("encode", lambda: stock.encode(x).latent_dist.mode(), lambda: fast.encode(low)),
        ("decode", lambda: stock.decode(maps).sample, lambda: fast.decode(low_code)),
    ):
        slow, quick = (images / t for t in median_seconds(theirs, ours, runs))
        print(f"{name:<8}{slow:>16.2f}{quick:>12.2f}{quick / slow:>7.2f}x")
    plain = exact.decode(code)
    print(f"\nerror against fp32, random weights: code {relative_error(fast.encode(low).z, code.z):.2%},", end=" ")
    print(f"image {relative_error(fast.decode(low_code), plain):.2%} of its rms,", end=" ")
    print(f"{psnr(fast.decode(low_code).float(), plain):.1f} dB at a range of {(plain.max() - plain.min()).item():.2f}")


def smooth_images(images: int, size: int) -> Tensor:
    """Smooth images [n, 3, size, size] in [-1, 1]."""
    coarse = torch.rand(images, 3, 8, 8) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)


def median_seconds(first: Callable, second: Callable, runs: int) -> tuple[float, float]:
    """Median seconds of each, called in turn after one warm-up."""
    times = {first: [], second: []}
    for run in range(runs + 1):
        for function, taken in times.items():
            start = time.perf_counter()
            function()
            if run:
                taken.append(time.perf_counter() - start)
    return statistics.median(times[first]), statistics.median(times[second])


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of the exact values."""
    return ((ours.float() - exact).square().mean() / exact.square().mean()).sqrt().item()


def psnr(ours: Tensor, exact: Tensor) -> float:
    """In decibels; the peak is the range of the exact images."""
    peak = exact.max() - exact.min()
    return (20 * peak.log10() - 10 * (ours - exact).square().mean().log10()).item()


if __name__ == "__main__":
    main()
